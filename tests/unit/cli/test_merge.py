from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from glue.checkpoints.manifest import read_manifest, verify_manifest
from glue.cli.main import app
from glue.cli.merge import bytes_of
from tests.support.models import tiny_llama


def write(path: Path, config: object) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["merge", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    for seed, name in enumerate(("base", "a", "b")):
        tiny_llama(tmp_path / name, seed=seed)
    return tmp_path


LINEAR = {
    "merge_method": "linear",
    "models": [
        {"model": "./a", "parameters": {"weight": 0.5}},
        {"model": "./b", "parameters": {"weight": [0.5, 0.1]}},
    ],
    "dtype": "bfloat16",
    "out_dtype": "float32",
}


def test_a_file_becomes_a_whole_checked_folder(zoo: Path) -> None:
    code, output = run(write(zoo / "merge.yml", LINEAR), zoo / "out", "--verify", "load")
    assert (code, "merged into" in output) == (0, True)
    verify_manifest(zoo / "out", read_manifest(zoo / "out"))
    assert load_file(zoo / "out" / "model.safetensors")["model.norm.weight"].dtype == torch.float32
    assert not list(zoo.glob(".*partial"))


def test_an_existing_folder_is_not_touched(zoo: Path) -> None:
    (zoo / "out").mkdir()
    code, output = run(write(zoo / "merge.yml", LINEAR), zoo / "out")
    assert code == 1
    assert "exists already" in output
    assert not list((zoo / "out").iterdir())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"merge_metod": "linear"}, "did you mean 'merge_method'?"),
        ({"merge_method": "blend"}, "there is no merge method 'blend'"),
        ({"base_model": "./nowhere"}, "is not a folder"),
        ({"base_model": "someone/model@main"}, "download"),
        ({"models": []}, "exactly one of models, slices and modules"),
        ({"dtype": "int8"}, "float32, bfloat16 or float16"),
        ({"slices": [{"sources": [{"model": "a", "layer_range": [0, 1]}], "residual_weight": 0.5}]}, "residual_weight"),
        ({"models": [{"model": "./a"}]}, "the parameter weight has no value"),
        ({"merge_method": "slerp", "parameters": {"t": 0.5}}, "needs base_model"),
        ({"merge_method": "ties"}, "needs a base model"),
        ({"merge_method": "ties", "base_model": "./base", "parameters": {"density": 1.5}}, "density"),
        ({"chat_template": "nonsense"}, "there is no chat template"),
    ],
)
def test_mistakes_are_told_in_words(zoo: Path, change: dict[str, object], told: str) -> None:
    code, output = run(write(zoo / "merge.yml", LINEAR | change), zoo / "out")
    assert code == 1
    assert told in output
    assert not (zoo / "out").exists()


def test_parameters_that_change_nothing_are_named(zoo: Path) -> None:
    code, output = run(write(zoo / "merge.yml", LINEAR | {"parameters": {"density": 0.5}}), zoo / "out")
    assert code == 0
    assert "they change nothing: density" in output


def test_the_seed_changes_random_methods_only_where_the_file_has_none(zoo: Path) -> None:
    dare = {"merge_method": "dare_linear", "base_model": "./base", "parameters": {"density": 0.5}}
    config = {key: value for key, value in LINEAR.items() if key != "dtype"} | dare
    outs = []
    for number, (more, seed) in enumerate([({}, 1), ({}, 2), ({"seed": 9}, 1), ({"seed": 9}, 2)]):
        file = write(zoo / "merge.yml", config | {"parameters": {"density": 0.5} | more})
        assert run(file, zoo / f"out{number}", "--seed", seed)[0] == 0
        outs.append(read_manifest(zoo / f"out{number}").digest)
    assert outs[0] != outs[1]
    assert outs[2] == outs[3]


def test_the_check_by_loading_comes_before_the_name(zoo: Path) -> None:
    tensors = load_file(zoo / "a" / "model.safetensors")
    huge = {name: torch.full_like(tensor, 3e38) if "norm" in name else tensor for name, tensor in tensors.items()}
    save_file(huge, zoo / "a" / "model.safetensors", {"format": "pt"})
    code, output = run(write(zoo / "merge.yml", LINEAR), zoo / "out", "--verify", "load")
    assert code == 1
    assert "not finite" in output
    assert not (zoo / "out").exists()


@pytest.mark.parametrize(("size", "expected"), [("4GB", 4 * 10**9), ("500MB", 5 * 10**8), ("1.5g", 15 * 10**8)])
def test_sizes_are_read(size: str, expected: int) -> None:
    assert bytes_of(size) == expected
