import os
import shutil
from pathlib import Path

import pytest

from glue.checkpoints.manifest import (
    DamagedFolderError,
    Manifest,
    build_manifest,
    publish_folder,
    read_manifest,
    verify_manifest,
)
from glue.specs.errors import DiskFullError


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


FILES = {"config.json": b"{}", "model.safetensors": b"weights", "plots/a.png": b"png"}


def test_a_manifest_names_every_file_in_order_and_survives_json(tmp_path: Path) -> None:
    manifest = build_manifest(folder(tmp_path, FILES))
    assert [entry.path for entry in manifest.files] == sorted(FILES)
    assert manifest.size == sum(map(len, FILES.values()))
    assert Manifest.from_json(manifest.as_json()) == manifest


def test_the_digest_is_of_content_alone(tmp_path: Path) -> None:
    one = build_manifest(folder(tmp_path / "one", FILES))
    two = build_manifest(folder(tmp_path / "two", FILES))
    other = build_manifest(folder(tmp_path / "three", FILES | {"config.json": b"[]"}))
    renamed = build_manifest(folder(tmp_path / "four", {f"x{name}": content for name, content in FILES.items()}))
    assert one.digest == two.digest
    assert len({one.digest, other.digest, renamed.digest}) == 3


@pytest.mark.parametrize("damage", ["changed", "longer", "missing", "more"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    manifest = build_manifest(folder(tmp_path, FILES))
    verify_manifest(tmp_path, manifest)
    target = tmp_path / "model.safetensors"
    if damage == "missing":
        target.unlink()
    elif damage == "more":
        (tmp_path / "more.txt").write_bytes(b"")
    else:
        target.write_bytes(b"Weights" if damage == "changed" else b"weights and more")
    with pytest.raises(DamagedFolderError):
        verify_manifest(tmp_path, manifest)


def test_publishing_moves_the_folder_under_its_digest_with_its_manifest(tmp_path: Path) -> None:
    work = folder(tmp_path / "work", FILES)
    manifest, location = publish_folder(work, tmp_path / "artifacts")
    assert location == f"{manifest.digest[:2]}/{manifest.digest}"
    published = tmp_path / "artifacts" / location
    assert not work.exists()
    assert read_manifest(published) == manifest
    verify_manifest(published, manifest)


def test_the_same_content_twice_is_fine(tmp_path: Path) -> None:
    first = publish_folder(folder(tmp_path / "one", FILES), tmp_path / "artifacts")
    second = publish_folder(folder(tmp_path / "two", FILES), tmp_path / "artifacts")
    assert first == second
    assert not (tmp_path / "two").exists()
    verify_manifest(tmp_path / "artifacts" / first[1], first[0])


def test_what_killed_writers_left_is_not_published(tmp_path: Path) -> None:
    clean = publish_folder(folder(tmp_path / "one", FILES), tmp_path / "artifacts")
    work = folder(tmp_path / "two", FILES | {"model.safetensors.tmp.3": b"half"})
    assert publish_folder(work, tmp_path / "other") == clean
    assert not list((tmp_path / "other").rglob("*.tmp.*"))


def test_a_folder_without_its_manifest_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(DamagedFolderError):
        read_manifest(folder(tmp_path, FILES))


def test_a_full_disk_is_told(tmp_path: Path, small_disk: Path) -> None:
    shutil.copytree(folder(tmp_path / "work", FILES), small_disk / "work")
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"\0" * (free.f_bavail * free.f_bsize))
    with pytest.raises(DiskFullError):
        publish_folder(small_disk / "work", small_disk / "artifacts")
    assert not (small_disk / "work" / "manifest.json").exists()
