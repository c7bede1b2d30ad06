"""What methods find out about whole models: trimming over all tensors, and statistics that the inputs must bring."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from glue.checkpoints.reader import Checkpoint
from glue.merging import blocks, registry
from glue.merging.blocks import Grid, Kernel
from glue.merging.engine import evaluate, merge_into, merge_to_folder
from glue.merging.preflight import preflight_file
from glue.merging.registry import BaseUse, NoParameters, Operands, Survey, Whole, surveying_method
from glue.merging.run import merge_file
from glue.merging.whole_selection import Part, largest_of_all
from glue.specs.errors import IncompatibleModelsError, InvalidInputError
from glue.specs.expression import ByLayer, Input, Member, Merge, linear
from tests.support.models import tiny_llama


def opened(folders: Mapping[str, Path]) -> dict[str, Checkpoint]:
    return {name: Checkpoint.open(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("zoo")
    return {name: tiny_llama(root / name, seed=seed) for seed, name in enumerate("abcd")}


# --- the largest values over several tensors ---------------------------------------------------------------------


def kept_by_oracle(models: list[list[Tensor]], counts: list[int]) -> list[list[Tensor]]:
    """The plain way: all values of a model side by side, sorted stably downwards, the first ones kept."""
    masks = []
    for tensors, count in zip(models, counts, strict=True):
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        mask = torch.zeros_like(flat)
        mask[flat.argsort(descending=True, stable=True)[: max(0, count)]] = 1
        masks.append(list(mask.split([tensor.numel() for tensor in tensors])))
    return masks


@settings(max_examples=60, deadline=None)
@given(
    shares=st.lists(st.floats(-0.1, 1.1), min_size=1, max_size=3),
    levels=st.sampled_from([2, 9, 0]),
    shapes=st.lists(st.sampled_from([(5, 7), (40,), (3, 2, 11), (1,), ()]), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_the_largest_over_all_tensors_are_those_of_the_sorted_whole(
    shares: list[float], levels: int, shapes: list[tuple[int, ...]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    models = [[torch.rand(shape, generator=generator) for shape in shapes] for _ in shares]
    if levels:
        models = [[(tensor * levels).floor() for tensor in tensors] for tensors in models]
    elements = sum(tensor.numel() for tensor in models[0])
    counts = [round(share * elements) for share in shares]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ELEMENTS", 20)
        parts = [part_of([tensors[number] for tensors in models]) for number in range(len(shapes))]
        found = largest_of_all(parts, counts)
        for number, part in enumerate(parts):
            for model, oracle in enumerate(kept_by_oracle(models, counts)):
                cut = found[number][model]
                masks = [cut.mask(block, part.open()(block)[model]) for block in part.grid.blocks]
                assert torch.equal(torch.cat([mask.flatten() for mask in masks]), oracle[number])


def part_of(tensors: list[Tensor]) -> Part:
    grid = Grid(tuple(tensors[0].shape))
    rows = torch.stack([tensor.reshape(grid.rows, grid.columns) for tensor in tensors])
    return Part(grid, lambda: lambda block: rows[:, block.start : block.stop])


# --- TIES over whole models --------------------------------------------------------------------------------------


def ties_of_whole_models(zoo: Mapping[str, Path], densities: Mapping[str, float]) -> dict[str, Tensor]:
    """Algorithm 1 of the paper on flat task vectors in memory; the mean is over those that agree, weights are 1."""
    tensors = {name: {key: c.read(key, torch.float32) for key in c.tensors} for name, c in opened(zoo).items()}
    names = list(tensors["d"])
    base = torch.cat([tensors["d"][key].flatten() for key in names])
    trimmed = []
    for name, density in densities.items():
        delta = torch.cat([tensors[name][key].flatten() for key in names]) - base
        mask = torch.zeros_like(delta)
        kept = int(density * delta.numel())
        mask[delta.abs().argsort(descending=True, stable=True)[:kept]] = 1
        trimmed.append(delta * mask)
    vectors = torch.stack(trimmed)
    sign = torch.where(vectors.sum(0) >= 0, 1.0, -1.0)
    agreeing = (vectors * sign > 0).float()
    merged = base + (vectors * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)
    parts = merged.split([tensors["d"][key].numel() for key in names])
    return {key: part.view(tensors["d"][key].shape) for key, part in zip(names, parts, strict=True)}


def ties(densities: Mapping[str, float | ByLayer], trim: str) -> Merge:
    inputs = tuple(
        Input(model=Member(name=name), parameters={"weight": 1.0, "density": density})
        for name, density in densities.items()
    )
    return Merge(method="ties", inputs=inputs, base=Member(name="d"), parameters={"trim": trim})


def test_ties_trims_whole_models_as_the_paper_says(zoo: dict[str, Path], tmp_path: Path) -> None:
    densities = {"a": 0.2, "b": 0.5, "c": 0.07}
    expected = ties_of_whole_models(zoo, densities)
    expression = ties(densities, "model")
    merge_to_folder(
        expression, zoo, tmp_path / "out", dtype="float32", shard_bytes=10_000, token=1,
        progress=lambda fraction, message: None,
    )  # fmt: skip
    with Checkpoint.open(tmp_path / "out") as out:
        assert out.tensors.keys() == expected.keys()
        for name in out.tensors:
            torch.testing.assert_close(out.read(name), expected[name], rtol=1e-5, atol=1e-6)
            assert torch.equal(evaluate(expression, opened(zoo), name), out.read(name))


def test_trimming_tensor_by_tensor_is_another_choice(zoo: dict[str, Path]) -> None:
    # Norms of Llama start at one for all models: a trim per tensor keeps some of their zeros, one per model none.
    name = "model.layers.0.mlp.up_proj.weight"
    by_tensor = evaluate(ties({"a": 0.2}, "tensor"), opened(zoo), name)
    by_model = evaluate(ties({"a": 0.2}, "model"), opened(zoo), name)
    base = opened(zoo)["d"].read(name, torch.float32)
    moved = [int((merged != base).sum()) for merged in (by_tensor, by_model)]
    assert moved[0] == int(0.2 * base.numel())
    assert moved[1] != moved[0]


def test_whole_models_are_trimmed_to_one_density(zoo: dict[str, Path]) -> None:
    by_layer = ByLayer(layers=2, groups=(0.2, 0.4), outside=0.3)
    with pytest.raises(InvalidInputError, match="trim: tensor"):
        evaluate(ties({"a": by_layer}, "model"), opened(zoo), "model.norm.weight")


def test_a_nested_merge_is_surveyed_before_the_outer_one(zoo: dict[str, Path], tmp_path: Path) -> None:
    inner = ties({"a": 0.3, "b": 0.4}, "model")
    merge_to_folder(
        inner, zoo, tmp_path / "inner", dtype="float32", shard_bytes=10**9, token=1,
        progress=lambda fraction, message: None,
    )  # fmt: skip
    parts = (Input(model=inner, parameters={"weight": 1.0, "density": 0.2}), *ties({"c": 0.5}, "model").inputs)
    nested = Merge(method="ties", inputs=parts, base=Member(name="d"), parameters={"trim": "model"})
    stepwise = ties({"i": 0.2, "c": 0.5}, "model")
    checkpoints = opened({**zoo, "i": tmp_path / "inner"})
    for name in checkpoints["a"].tensors:
        assert torch.equal(evaluate(nested, checkpoints, name), evaluate(stepwise, checkpoints, name))


# --- methods that need statistics --------------------------------------------------------------------------------


@pytest.fixture
def precision_weighted() -> Iterator[None]:
    """A method of this test: the mean of the models weighted by how sure each is of every weight."""
    survey: Survey[NoParameters, NoParameters, tuple[Checkpoint, ...]] = Survey(
        lambda whole: whole.statistics("precision"), statistics=("precision",)
    )

    @surveying_method(
        "precision_weighted", survey=survey, options=NoParameters, per_input=NoParameters, base=BaseUse.NONE
    )
    def _merge(operands: Operands[NoParameters, NoParameters], found: tuple[Checkpoint, ...] | None) -> Kernel:
        assert found is not None
        columns = operands.grid.columns

        def kernel(block: blocks.Block) -> Tensor:
            flat = [each.read_flat(operands.tensor, block.start * columns, block.stop * columns) for each in found]
            shares = torch.stack(flat).view(len(found), -1, columns)
            values = torch.stack([source.read(block) for source in operands.inputs])
            return (shares * values).sum(0) / shares.sum(0)

        return kernel

    yield
    del registry._METHODS["precision_weighted"]


PRECISION_WEIGHTED = Merge(
    method="precision_weighted", inputs=(Input(model=Member(name="a")), Input(model=Member(name="b")))
)


def with_precision(folder: Path, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    checkpoint = Checkpoint.open(folder)
    found = {name: torch.rand(info.shape, generator=generator) + 0.1 for name, info in checkpoint.tensors.items()}
    (folder / "statistics").mkdir()
    save_file(found, folder / "statistics" / "precision.safetensors")
    return found


def test_a_method_reads_the_statistics_that_its_inputs_bring(tmp_path: Path, precision_weighted: None) -> None:
    folders = {name: tiny_llama(tmp_path / name, seed=seed) for seed, name in enumerate("ab")}
    precisions = [with_precision(folder, seed) for seed, folder in enumerate(folders.values())]
    models = list(opened(folders).values())
    for name in models[0].tensors:
        sums = [model.read(name) * shares[name] for model, shares in zip(models, precisions, strict=True)]
        expected = (sums[0] + sums[1]) / (precisions[0][name] + precisions[1][name])
        torch.testing.assert_close(evaluate(PRECISION_WEIGHTED, opened(folders), name), expected)


def test_missing_statistics_are_told_before_any_weight_is_read(
    tmp_path: Path, precision_weighted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: tiny_llama(tmp_path / name, seed=seed) for seed, name in enumerate("ab")}
    with_precision(folders["a"], 0)
    monkeypatch.setattr(Checkpoint, "read_flat", lambda *arguments: pytest.fail("a weight was read"))
    with pytest.raises(IncompatibleModelsError, match=r"'precision'.* b has none.*statistics/precision\.safetensors"):
        merge_to_folder(
            PRECISION_WEIGHTED, folders, tmp_path / "out", dtype="float32", shard_bytes=10**9, token=1,
            progress=lambda fraction, message: None,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_merge_brings_no_statistics(zoo: dict[str, Path], precision_weighted: None) -> None:
    nested = Merge(method="precision_weighted", inputs=(Input(model=linear({"a": 0.5, "b": 0.5})),))
    with pytest.raises(IncompatibleModelsError, match="one of them is a merge"):
        evaluate(nested, opened(zoo), "model.norm.weight")


def test_what_a_survey_finds_enters_the_resident_model_too(zoo: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    expression = ties({"a": 0.2, "b": 0.1}, "model")
    model = AutoModelForCausalLM.from_pretrained(zoo["a"])
    merge_into(expression, opened(zoo), model)
    for name, value in model.state_dict().items():
        if name in opened(zoo)["a"].tensors:
            assert torch.equal(value, evaluate(expression, opened(zoo), name))


def test_a_survey_sees_the_weights_in_the_order_of_the_result(zoo: dict[str, Path]) -> None:
    seen: list[Whole[NoParameters, NoParameters]] = []
    survey: Survey[NoParameters, NoParameters, None] = Survey(seen.append)

    @surveying_method("watching", survey=survey, options=NoParameters, per_input=NoParameters, base=BaseUse.NONE)
    def _merge(operands: Operands[NoParameters, NoParameters], found: None) -> Kernel:
        return operands.inputs[0].read

    try:
        evaluate(Merge(method="watching", inputs=(Input(model=Member(name="a")),)), opened(zoo), "model.norm.weight")
    finally:
        del registry._METHODS["watching"]
    assert list(seen[0].tensors) == list(opened(zoo)["a"].tensors)
    assert seen[0].config["hidden_size"] == 16


def test_preflight_tells_what_a_survey_would_stumble_over(zoo: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "merge.yml"
    file.write_text(
        f"""
        merge_method: ties
        base_model: {zoo["d"]}
        models: [{{model: {zoo["a"]}, parameters: {{weight: 1, density: [0.2, 0.4]}}}}]
        parameters: {{trim: model}}
        dtype: float32
        """
    )
    (problem,) = preflight_file(file, tmp_path).problems
    assert (problem.code, problem.pointer) == ("density_differs", "/parameters/density")
    file.write_text(file.read_text().replace("[0.2, 0.4]", "0.3"))
    assert not preflight_file(file, tmp_path).problems
    told: list[str] = []
    merge_file(
        file, tmp_path / "out", shard_bytes=10**9, seed=None, progress=lambda fraction, message: told.append(message)
    )
    assert told[0].startswith("looking for the largest elements")
    with Checkpoint.open(tmp_path / "out") as out:
        for name in out.tensors:
            assert torch.equal(out.read(name), evaluate(ties({"a": 0.3}, "model"), opened(zoo), name))
