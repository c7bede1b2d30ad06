import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from glue.cli.main import app
from tests.support.models import tiny_llama


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    source = tiny_llama(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").rename(tmp_path / "expected.safetensors")
    torch.save(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, source / "pytorch_model.bin")
    return source


def test_pickles_become_safetensors_that_load(pickled: Path, tmp_path: Path) -> None:
    code, output = run(pickled, tmp_path / "out")
    assert (code, "converted" in output) == (0, True), output
    found, expected = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "expected.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not any(AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)[1].values())


class Dangerous:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


def test_code_in_a_pickle_is_refused_and_not_run(
    pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model.norm.weight": Dangerous()}, pickled / "pytorch_model.bin")
    code, output = run(pickled, tmp_path / "out")
    assert code == 1
    assert "not a file of weights alone" in output
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_folder_without_pickles_is_told(tmp_path: Path) -> None:
    code, output = run(tiny_llama(tmp_path / "model"), tmp_path / "out")
    assert code == 1
    assert "pytorch_model.bin" in output
