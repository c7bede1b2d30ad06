"""Loading never runs code that came with a folder, reads safetensors only and invents no weight."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue.mixture.load import load_model
from glue.mixture.modeling_glue_model_mixture import GlueModelMixtureForCausalLM
from glue.specs.errors import Fault, IncompatibleModelsError
from tests.support.mixtures import MixtureFolders
from tests.support.models import tiny_llama

EVIL = "raise SystemExit('remote code ran')\n"


@pytest.fixture
def copy(built: MixtureFolders, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built.folder, tmp_path / "copy"))


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(IncompatibleModelsError, match=match) as caught:
        load_model(folder, torch.float32, "cpu")
    assert caught.value.fault == Fault.USER
    assert caught.value.problems[0].fix


def test_a_mixture_of_ours_comes_as_our_class(copy: Path) -> None:
    model = load_model(copy, torch.float32, "cpu")
    assert type(model) is GlueModelMixtureForCausalLM
    assert not model.training


def test_a_stock_model_comes_as_its_class(tmp_path: Path) -> None:
    model = load_model(tiny_llama(tmp_path / "a"), torch.bfloat16, "cpu")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.bfloat16
    assert not model.training


def test_a_changed_modelling_file_is_refused(copy: Path) -> None:
    with (copy / "modeling_glue_model_mixture.py").open("a") as file:
        file.write(EVIL)
    refused(copy, "modeling_glue_model_mixture.py .* is not the modelling file")


def test_a_second_python_file_is_refused(copy: Path) -> None:
    (copy / "another.py").write_text(EVIL)
    refused(copy, "another.py")


def test_a_missing_modelling_file_is_refused(copy: Path) -> None:
    (copy / "modeling_glue_model_mixture.py").unlink()
    refused(copy, "modeling_glue_model_mixture.py")


def test_an_auto_map_that_points_elsewhere_is_not_followed(copy: Path) -> None:
    edit_config(copy, auto_map={"AutoModelForCausalLM": "somebody/evil--evil.Model", "AutoConfig": "evil.Config"})
    assert type(load_model(copy, torch.float32, "cpu")) is GlueModelMixtureForCausalLM


def test_remote_code_of_a_stock_architecture_is_left_alone(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"})
    (folder / "evil.py").write_text(EVIL)
    assert type(load_model(folder, torch.float32, "cpu")).__name__ == "LlamaForCausalLM"


def test_an_architecture_that_needs_remote_code_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a")
    edit_config(folder, model_type="evil", auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"})
    (folder / "evil.py").write_text(EVIL)
    refused(folder, "a cannot be loaded")


def test_pickles_are_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(folder, "a cannot be loaded")


@pytest.mark.parametrize("mixture", [True, False])
def test_a_missing_weight_is_not_invented(mixture: bool, copy: Path, tmp_path: Path) -> None:
    folder, name = (
        (copy, "experts.1.embed_out.weight") if mixture else (tiny_llama(tmp_path / "a"), "model.norm.weight")
    )
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(tensor for tensor in tensors if tensor == name or tensor.endswith(name.split(".", 2)[-1]))]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "missing keys")


def test_a_weight_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a")
    edit_config(folder, intermediate_size=48)
    refused(folder, "6 mismatched keys, the first is .*down_proj")


def test_an_unknown_weight_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.extra": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "unexpected keys, the first is model.extra")
