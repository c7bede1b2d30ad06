"""Layers of several models in any order: what is scored is what is saved, and a path of one model is that model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from glue.checkpoints.reader import Checkpoint
from glue.merging.data_flow import config_for
from glue.merging.engine import merge_into, merge_to_folder
from glue.mixture.load import empty_model, load_model
from glue.references.headers import folder_tensors
from glue.search.data_flow import DataFlowSpace
from glue.specs.errors import GlueError
from glue.specs.expression import Input, Member, Merge, weights_of
from glue.specs.projections import is_output, output_filters
from glue.specs.recipes import mergekit_recipe
from tests.support.models import tiny_llama, tiny_neox
from tests.support.tiny_zoo import build_tiny_zoo

IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = build_tiny_zoo(tmp_path_factory.mktemp("zoo"))
    return {name: root / "models" / name for name in ("ant", "bee", "dog")}


def path_of(*slots: tuple[str, int] | tuple[str, int, float], ends: str = "ant") -> Merge:
    inputs = tuple(
        Input(model=Member(name=slot[0]), parameters={"layer": float(slot[1]), "scale": float((*slot, 1.0)[2])})
        for slot in slots
    )
    return Merge(method="data_flow", inputs=inputs, base=Member(name=ends))


def saved(expression: Merge, folders: dict[str, Path], out: Path) -> Path:
    merge_to_folder(
        expression, folders, out, dtype="float32", shard_bytes=10**9, token=1, progress=lambda fraction, message: None
    )
    return out


def resident(expression: Merge, folders: dict[str, Path]) -> PreTrainedModel:
    opened = {name: Checkpoint.open(folder) for name, folder in folders.items()}
    ends = folders[expression.base.name]  # type: ignore[union-attr]
    model = empty_model(config_for(expression, opened), ends, torch.float32, "cpu")
    merge_into(expression, opened, model)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def without_epsilon(model: PreTrainedModel) -> PreTrainedModel:
    """The same with norms that divide by the length alone."""
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.0
    return model


@pytest.mark.parametrize("name", ["ant", "dog"])
def test_a_path_through_one_model_is_that_model(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    own = load_model(folders[name], torch.float32, "cpu")
    expression = path_of(*((name, layer) for layer in range(own.config.num_hidden_layers)), ends=name)
    assert torch.equal(logits(resident(expression, folders)), logits(own))
    out = load_file(saved(expression, folders, tmp_path / "out") / "model.safetensors")
    source = load_file(folders[name] / "model.safetensors")
    assert out.keys() == source.keys()
    assert all(torch.equal(out[key], source[key]) for key in out)


def test_what_is_scored_is_what_is_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    expression = path_of(("ant", 0), ("bee", 1, 0.75), ("bee", 0), ("ant", 1, 1.5), ("ant", 1))
    model = resident(expression, folders)
    assert model.config.num_hidden_layers == 5
    again = AutoModelForCausalLM.from_pretrained(saved(expression, folders, tmp_path / "out"))
    assert torch.equal(logits(model), logits(again))
    cached = again.generate(IDS, max_new_tokens=6, do_sample=False)
    assert torch.equal(cached, again.generate(IDS, max_new_tokens=6, do_sample=False, use_cache=False))


def test_the_factors_of_a_point_are_those_of_the_layers_inputs(folders: dict[str, Path]) -> None:
    space = DataFlowSpace(("ant", "bee"), layers=2, repeats=1)
    factors = (0.8, 1.3, 0.6, 1.4)
    point = {d.name: 1.0 for d in space.dimensions}
    point |= {f"{place}: factor": factor for place, factor in enumerate(factors)}
    found = logits(without_epsilon(resident(space.expression(point), folders)))

    plain = path_of(("ant", 0), ("ant", 1), ("bee", 0), ("bee", 1))
    model: Any = without_epsilon(resident(plain, folders))
    unscaled = logits(model)
    for layer, factor in zip(model.model.layers, factors, strict=True):
        layer.register_forward_pre_hook(lambda _, given, by=factor: (given[0] * by, *given[1:]))
    torch.testing.assert_close(found, logits(model), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, unscaled, rtol=1e-2, atol=1e-2)


def test_the_search_starts_at_the_best_model_and_every_path_has_a_layer() -> None:
    space = DataFlowSpace(("ant", "bee"), layers=2, repeats=2)
    assert len(space.dimensions) == 2 * 2 * 2 * 2
    middle = {d.name: (d.low + d.high) / 2 for d in space.dimensions}
    assert space.expression(middle) == path_of(("ant", 0), ("ant", 1))
    nothing = {**middle, "0: take ant 0": -0.4, "1: take ant 1": -0.3}
    assert space.expression(nothing) == path_of(("ant", 1))


def test_its_recipe_is_mergekits_passthrough_and_its_weights_are_shares() -> None:
    expression = path_of(("ant", 0), ("bee", 1, 0.75), ("bee", 0), ("bee", 1))
    recipe = mergekit_recipe(expression, {"ant": "/ant", "bee": "/bee"}, "float32")
    assert recipe is not None
    assert (recipe["merge_method"], recipe["base_model"]) == ("passthrough", "/ant")
    assert recipe["slices"][0] == recipe["slices"][-1] == {"sources": [{"model": "/ant", "layer_range": [0, 0]}]}
    assert recipe["slices"][1] == {"sources": [{"model": "/ant", "layer_range": [0, 1]}]}
    scale = recipe["slices"][2]["sources"][0]["parameters"]["scale"]
    assert scale[-1] == {"value": 1.0}
    assert {entry["value"] for entry in scale[:-1]} == {0.75}
    assert weights_of(expression) == {"ant": 0.25, "bee": 0.75}


@pytest.mark.parametrize("make", [tiny_llama, tiny_neox])
def test_the_recipes_filters_find_what_is_scaled(make: Callable[[Path], Path], tmp_path: Path) -> None:
    layer = [name for name in folder_tensors(make(tmp_path / "model")) if ".layers.1." in name]
    found = {name for name in layer if any(part in name for part in output_filters())}
    assert found == {name for name in layer if is_output(name)}
    assert len({name.rpartition(".")[0] for name in found}) == 2


@pytest.mark.parametrize(
    "expression", [path_of(("ant", 9)), Merge(method="data_flow", inputs=path_of(("ant", 0)).inputs)]
)
def test_a_layer_or_a_base_that_is_not_there_is_told(
    expression: Merge, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(GlueError, match=r"layer 9|base"):
        saved(expression, folders, tmp_path / "out")
