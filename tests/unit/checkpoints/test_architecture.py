import json
import subprocess
import sys
from pathlib import Path

import pytest

from glue.checkpoints import architecture
from glue.checkpoints.architecture import architecture_of
from glue.references.folders import read_config
from tests.support.models import tiny_llama, tiny_neox

WITHOUT_TRANSFORMERS = """
import json, sys
sys.modules["transformers"] = None
from glue.checkpoints.architecture import architecture_of
import glue.merging.run
print(json.dumps(architecture_of(json.loads(sys.argv[1])).as_json()))
"""


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nothing remembered in memory."""
    monkeypatch.setenv("GLUE_CACHE", str(tmp_path / "cache"))
    architecture._architecture.cache_clear()
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", [tiny_llama, tiny_neox])
def test_a_known_architecture_needs_no_transformers(kind: object, tmp_path: Path, fresh: Path) -> None:
    assert callable(kind)
    config = read_config(kind(tmp_path / "model"))
    found = architecture_of(config)
    assert len(list(fresh.rglob("*.json"))) == 1
    command = [sys.executable, "-c", WITHOUT_TRANSFORMERS, json.dumps(config)]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert architecture.Architecture.from_json(told) == found
    architecture._architecture.cache_clear()
    assert architecture_of(config) == found


def test_another_config_is_another_entry(tmp_path: Path, fresh: Path) -> None:
    config = read_config(tiny_llama(tmp_path / "model"))
    wider = config | {"intermediate_size": 2 * config["intermediate_size"]}
    assert architecture_of(config) != architecture_of(wider)
    assert len(list(fresh.rglob("*.json"))) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[]", b"{}"])
def test_a_damaged_entry_is_asked_for_again(tmp_path: Path, fresh: Path, damage: bytes) -> None:
    config = read_config(tiny_llama(tmp_path / "model"))
    found = architecture_of(config)
    entry = next(fresh.rglob("*.json"))
    entry.write_bytes(damage)
    architecture._architecture.cache_clear()
    assert architecture_of(config) == found
    assert json.loads(entry.read_bytes()) == found.as_json()


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path, fresh: Path) -> None:
    fresh.write_text("in the way")
    config = read_config(tiny_llama(tmp_path / "model"))
    assert "model.embed_tokens.weight" in architecture_of(config).shapes
