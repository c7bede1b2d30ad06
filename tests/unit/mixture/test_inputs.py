"""Mixtures of merges that are never stored and of models with adapters, at every level."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from glue.merging.run import merge_file
from glue.mixture.run import mix_file
from tests.support.adapters import write_adapter
from tests.support.mixtures import silent
from tests.support.models import tiny_llama

Config = dict[str, Any]
LEVELS: list[Config] = [
    {"level": "ffn"},
    {"level": "ffn", "router": {"input": "sample"}},
    {"level": "block"},
    {"level": "model"},
]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, a merge of them as a file and as a folder, an adapter beside the folder that it makes."""
    root = tmp_path_factory.mktemp("zoo")
    for seed, name in enumerate("abc"):
        tiny_llama(root / name, seed=seed)
    write_adapter(root / "lora", root / "c")
    stored(root, merge(), "merged")
    stored(root, {"merge_method": "passthrough", "dtype": "float32", "models": [{"model": "./c+./lora"}]}, "adapted")
    return root


def merge() -> Config:
    models = [{"model": "./a", "parameters": {"weight": 0.3}}, {"model": "./b", "parameters": {"weight": 0.7}}]
    return {"merge_method": "linear", "dtype": "float32", "models": models}


def stored(root: Path, file: Config, name: str) -> None:
    (root / f"{name}.yml").write_text(yaml.safe_dump(file))
    merge_file(root / f"{name}.yml", root / name, shard_bytes=10**9, seed=None, progress=silent)


def mixed(root: Path, out: Path, base: Any, experts: list[Any], settings: Config) -> dict[str, torch.Tensor]:
    texts = [["12+3=", "9*9="], ["def f(x):"]]
    listed = [{"source_model": each, "positive_prompts": own} for each, own in zip(experts, texts, strict=True)]
    file = root / f"{out.name}.yml"
    file.write_text(yaml.safe_dump({"base_model": base, "experts": listed} | settings))
    mix_file(file, out, shard_bytes=10**9, seed=None, progress=silent)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("settings", LEVELS, ids=str)
def test_what_is_never_stored_gives_what_a_stored_one_does(zoo: Path, settings: Config, tmp_path: Path) -> None:
    nested = mixed(zoo, tmp_path / "nested", {"merge": merge()}, ["./c+./lora", {"merge": merge()}], settings)
    expected = mixed(zoo, tmp_path / "stored", "./merged", ["./adapted", "./merged"], settings)
    assert nested.keys() == expected.keys()
    assert all(torch.equal(nested[name], expected[name]) for name in expected)
    assert (tmp_path / "nested" / "tokenizer.json").is_file()
