"""Finished folders on a real S3 server and on a file system, under one and the same contract."""

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from glue.artifacts.storage import ArtifactStorage, StorageError
from glue.checkpoints.manifest import (
    MANIFEST_FILE,
    DamagedFolderError,
    build_manifest,
    publish_folder,
    read_manifest,
    verify_manifest,
)
from tests.support.object_storage import ObjectStorage, object_storage


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStorage]:
    with object_storage() as running:
        yield running


@pytest.fixture(params=["s3", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file":
        return f"file://{tmp_path / 'remote'}"
    server: ObjectStorage = request.getfixturevalue("server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"{server.bucket(tmp_path.name.replace('_', '-').strip('-').lower())}/prefix"


@pytest.fixture
def storage(url: str) -> ArtifactStorage:
    return ArtifactStorage(url, skip_instance_cache=True)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


def publish(artifacts: Path, seed: int = 0) -> str:
    """A finished folder of a few files, one of several blocks; its location."""
    work = artifacts.parent / f"work-{seed}"
    (work / "plots").mkdir(parents=True)
    (work / "model.safetensors").write_bytes(bytes([seed, 1, 2]) * 5_000_000)
    (work / "config.json").write_text(json.dumps({"seed": seed}))
    (work / "plots" / "empty.png").write_bytes(b"")
    return publish_folder(work, artifacts)[1]


class StoppedError(Exception):
    """What a check raises."""


def stop_after(calls: int) -> "Countdown":
    return Countdown(calls)


class Countdown:
    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise StoppedError


def test_what_is_stored_here_is_fetched_there(storage: ArtifactStorage, here: Path, tmp_path: Path) -> None:
    location, there = publish(here), tmp_path / "there"
    assert not storage.has(location)
    storage.store(here, location)
    assert storage.has(location)
    storage.fetch(there, location)
    manifest = read_manifest(here / location)
    assert read_manifest(there / location) == manifest
    verify_manifest(there / location, manifest)


def test_twice_is_fine(storage: ArtifactStorage, here: Path, tmp_path: Path) -> None:
    location, there = publish(here), tmp_path / "there"
    for _ in range(2):
        storage.store(here, location)
        storage.fetch(there, location)
    assert [path.name for path in (there / location).parent.iterdir()] == [Path(location).name]


@pytest.mark.parametrize("blocks", [0, 1, 3, 5])
def test_a_store_that_was_stopped_is_not_there_and_is_finished_later(
    storage: ArtifactStorage, here: Path, tmp_path: Path, blocks: int
) -> None:
    location = publish(here)
    with pytest.raises(StoppedError):
        storage.store(here, location, stop_after(blocks))
    assert not storage.has(location)
    with pytest.raises(StorageError):
        storage.fetch(tmp_path / "there", location)
    storage.store(here, location)
    storage.fetch(tmp_path / "there", location)


def test_a_fetch_that_was_stopped_leaves_nothing(storage: ArtifactStorage, here: Path, tmp_path: Path) -> None:
    location, there = publish(here), tmp_path / "there"
    storage.store(here, location)
    with pytest.raises(StoppedError):
        storage.fetch(there, location, stop_after(3))
    assert not list((there / location).parent.iterdir())


def test_damage_is_noticed(storage: ArtifactStorage, url: str, here: Path, tmp_path: Path) -> None:
    location = publish(here)
    storage.store(here, location)
    files, root = fsspec.core.url_to_fs(url)
    with files.open(f"{root}/{location}/config.json", "wb") as config:
        config.write(b'{"seed": 1}')
    with pytest.raises(DamagedFolderError):
        storage.fetch(tmp_path / "there", location)
    assert not list((tmp_path / "there" / location).parent.iterdir())


def test_a_manifest_under_a_strange_name_is_refused(
    storage: ArtifactStorage, url: str, here: Path, tmp_path: Path
) -> None:
    location, other = publish(here), publish(here, seed=1)
    storage.store(here, other)
    files, root = fsspec.core.url_to_fs(url)
    files.copy(f"{root}/{other}", f"{root}/{location}", recursive=True)
    with pytest.raises(StorageError, match="another manifest"):
        storage.fetch(tmp_path / "there", location)


def test_a_manifest_cannot_lead_out_of_its_folder(
    storage: ArtifactStorage, url: str, here: Path, tmp_path: Path
) -> None:
    location = publish(here)
    storage.store(here, location)
    files, root = fsspec.core.url_to_fs(url)
    evil = {"files": [{"path": "../../../evil", "size": 1, "sha256": "0" * 64}]}
    with files.open(f"{root}/{location}/{MANIFEST_FILE}", "wb") as manifest:
        manifest.write(json.dumps(evil).encode())
    with pytest.raises(StorageError, match="names"):
        storage.fetch(tmp_path / "there", location)


def test_any_range_of_a_file_can_be_read(storage: ArtifactStorage, here: Path) -> None:
    location = publish(here)
    storage.store(here, location)
    whole = (here / location / "model.safetensors").read_bytes()
    for start, end in ((0, len(whole)), (5, 6), (4_194_300, 9_000_001), (len(whole) - 3, len(whole))):
        assert b"".join(storage.read(location, "model.safetensors", start, end)) == whole[start:end]
    with pytest.raises(FileNotFoundError):
        storage.read(location, "nothing", 0, 1)


def shared(folder: Path) -> Path:
    """A folder that is no artifact."""
    (folder / "train").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes([7, 1, 2]) * 3_000_000)
    (folder / "train" / "data.jsonl").write_text("{}\n")
    (folder / ".complete").write_text("{}")
    return folder


def test_a_folder_that_is_no_artifact_is_shared(storage: ArtifactStorage, tmp_path: Path) -> None:
    ours, theirs = shared(tmp_path / "ours"), tmp_path / "theirs"
    storage.share(ours, "hub/model")
    assert storage.shared_bytes("hub/model", theirs) == 9_000_005
    storage.fetch_shared("hub/model", theirs)
    verify_manifest(theirs, build_manifest(ours))
    assert storage.shared_bytes("hub/model", theirs) == 0
    storage.share(ours, "hub/data", ["train/data.jsonl"])
    storage.fetch_shared("hub/data", tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").rglob("*")] == ["train", "data.jsonl"]


@pytest.mark.parametrize("blocks", [0, 2, 4, 6])
def test_a_fetch_of_a_shared_folder_goes_on_where_it_was_stopped(
    storage: ArtifactStorage, tmp_path: Path, blocks: int
) -> None:
    ours, theirs = shared(tmp_path / "ours"), tmp_path / "theirs"
    storage.share(ours, "hub/model")
    with pytest.raises(StoppedError):
        storage.fetch_shared("hub/model", theirs, ".complete", stop_after(blocks))
    assert not (theirs / ".complete").exists(), "it comes last"
    (theirs / ".fetch.dead").mkdir(parents=True)
    storage.fetch_shared("hub/model", theirs, ".complete")
    verify_manifest(theirs, build_manifest(ours))


def test_a_share_that_was_stopped_is_not_there_and_is_finished_later(storage: ArtifactStorage, tmp_path: Path) -> None:
    ours = shared(tmp_path / "ours")
    with pytest.raises(StoppedError):
        storage.share(ours, "hub/model", check=stop_after(2))
    with pytest.raises(StorageError, match="not on object storage"):
        storage.fetch_shared("hub/model", tmp_path / "theirs")
    storage.share(ours, "hub/model")
    storage.fetch_shared("hub/model", tmp_path / "theirs")


def test_damage_to_what_is_shared_is_noticed(storage: ArtifactStorage, url: str, tmp_path: Path) -> None:
    storage.share(shared(tmp_path / "ours"), "hub/model")
    files, root = fsspec.core.url_to_fs(url)
    with files.open(f"{root}/hub/model/train/data.jsonl", "wb") as data:
        data.write(b"[]\n")
    with pytest.raises(StorageError, match=r"data\.jsonl of hub/model has not the bytes"):
        storage.fetch_shared("hub/model", tmp_path / "theirs", ".complete")
    assert not (tmp_path / "theirs" / "train" / "data.jsonl").exists()
    assert not (tmp_path / "theirs" / ".complete").exists()
