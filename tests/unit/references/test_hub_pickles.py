"""Repositories that hold pickles alone: looked into by ranges, downloaded, converted once, and the pickles gone."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from glue.checkpoints.guarded import convert_in_a_process
from glue.references.findings import Findings
from glue.references.headers import folder_tensors
from glue.references.hub_access import HubAccess
from glue.references.hub_cache import used_bytes
from glue.references.hub_download import download
from glue.references.models import FoundModel, find_models
from glue.references.signature import signature
from glue.specs.errors import InvalidInputError
from glue.specs.zoo import ZooSpec
from tests.support.hub.server import OWNER, StandIn
from tests.support.models import tiny_llama

REPO = f"{OWNER}/pickled"


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A model in two pickles with an index; the safetensors that it was made of lie beside it."""
    folder = tiny_llama(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    names = sorted(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for shard, kept in shards.items():
        torch.save({name: tensors[name] for name in kept}, folder / shard)
    weight_map = {name: shard for shard, kept in shards.items() for name in kept}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def access(standing: StandIn, tmp_path: Path) -> HubAccess:
    return HubAccess(standing.url, tmp_path / "cache")


def found_in(standing: StandIn, tmp_path: Path) -> FoundModel:
    zoo = ZooSpec.parse({"name": "zoo", "members": [{"name": "a", "source": REPO}]})
    findings = Findings()
    models = find_models(zoo, [], findings, access(standing, tmp_path))
    findings.raise_any()
    return models[0]


def fetch(standing: StandIn, tmp_path: Path, commit: str, convert: Any = convert_in_a_process) -> Path:
    return download(REPO, commit, access(standing, tmp_path), lambda *_: None, convert)


def test_a_preflight_sees_what_the_safetensors_would_show(standing: StandIn, pickled: Path, tmp_path: Path) -> None:
    standing.store.add_folder(REPO, pickled)
    found = found_in(standing, tmp_path)
    config = json.loads((pickled / "config.json").read_text())
    (tmp_path / "expected").mkdir()
    (tmp_path / "model.safetensors").rename(tmp_path / "expected" / "model.safetensors")
    expected = folder_tensors(tmp_path / "expected")
    assert signature(config, folder_tensors(found.headers)) == signature(config, expected)
    assert {name: info.dtype for name, info in folder_tensors(found.headers).items()} == {
        name: info.dtype for name, info in expected.items()
    }


def test_it_is_converted_once_and_the_pickles_go(standing: StandIn, pickled: Path, tmp_path: Path) -> None:
    commit = standing.store.add_folder(REPO, pickled)
    folder = fetch(standing, tmp_path, commit)
    converted, expected = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in expected.items())
    assert (folder / "tokenizer.json").read_bytes() == (pickled / "tokenizer.json").read_bytes()
    assert not list((tmp_path / "cache").rglob("*.bin"))
    weights = (folder / "model.safetensors").stat().st_size
    assert weights < used_bytes(tmp_path / "cache") < 1.5 * weights
    before = len(standing.requests())
    assert fetch(standing, tmp_path, commit) == folder
    assert len(standing.requests()) == before


def test_a_conversion_that_broke_off_is_done_again(standing: StandIn, pickled: Path, tmp_path: Path) -> None:
    commit = standing.store.add_folder(REPO, pickled)

    def die(raw: Path, out: Path) -> None:
        out.mkdir()
        (out / "model.safetensors.tmp.0").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(standing, tmp_path, commit, die)
    sent = len(standing.requests("GET", "/cdn/"))
    folder = fetch(standing, tmp_path, commit)
    assert load_file(folder / "model.safetensors").keys() == load_file(tmp_path / "model.safetensors").keys()
    assert len(standing.requests("GET", "/cdn/")) == sent


class Calls:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch ran",)


def test_code_in_a_pickle_is_told_before_anything_is_downloaded(
    standing: StandIn, pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model.norm.weight": Calls()}, pickled / "pytorch_model-00001-of-00002.bin")
    commit = standing.store.add_folder(REPO, pickled)
    with pytest.raises(Exception, match="asks for") as told:
        found_in(standing, tmp_path)
    assert told.value.problems[0].code == "pickle"  # type: ignore[attr-defined]
    with pytest.raises(InvalidInputError, match="weights alone"):
        fetch(standing, tmp_path, commit)
    assert not (tmp_path / "ran").exists()
