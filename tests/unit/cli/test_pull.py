"""Pulling an artifact: what ends under its name is what the manifest says, whatever lay there before."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from glue.cli.client import Client, ServiceError, UnreachableError
from glue.cli.pull import pull

CONTENT = {"model.safetensors": b"weights", "plots/models.png": b"picture"}


class Shelf(Client):
    """A service that holds one artifact."""

    def __init__(self, content: dict[str, bytes]) -> None:
        super().__init__("http://127.0.0.1:9", "none")
        self._content = content

    def artifact_file(self, artifact_id: str, path: str) -> Iterator[bytes]:
        yield self._content[path]


def artifact(content: dict[str, bytes]) -> dict[str, Any]:
    files = [
        {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in content.items()
    ]
    return {"id": "art_1", "manifest": {"files": files}}


def fetch(folder: Path, held: dict[str, bytes] = CONTENT) -> None:
    with Shelf(held) as shelf:
        pull(shelf, artifact(CONTENT), folder, Console(quiet=True))


def found(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_another_pull_left_does_not_get_into_the_result(tmp_path: Path) -> None:
    left = tmp_path / "model.partial"
    (left / "plots").mkdir(parents=True)
    (left / "model.safetensors.index.json").write_text("another model's")
    (left / "model.safetensors").write_text("half")
    fetch(tmp_path / "model")
    assert found(tmp_path / "model") == CONTENT
    assert not left.exists()


def test_the_current_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fetch(Path())
    assert found(tmp_path / "here") == CONTENT


def test_a_file_or_a_full_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path / "file", tmp_path):
        with pytest.raises(ServiceError, match="is not empty"):
            fetch(taken)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_that_does_not_match_never_gets_the_name(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"model\.safetensors does not match"):
        fetch(tmp_path / "model", CONTENT | {"model.safetensors": b"garbage"})
    assert not (tmp_path / "model").exists()


def test_a_service_that_is_away_is_told_in_words(tmp_path: Path) -> None:
    with Client("http://127.0.0.1:9", "none") as away, pytest.raises(UnreachableError, match="does not answer"):
        pull(away, artifact(CONTENT), tmp_path / "model", Console(quiet=True))
