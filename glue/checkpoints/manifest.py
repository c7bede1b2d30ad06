"""What is in a finished folder: path, size and sha256 of every file; and its way into the artifacts. Knows no model."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from glue.checkpoints.disk import TEMPORARY, flush_folder, remove_temporaries, write_whole
from glue.specs.digests import canonical_json, digest_of
from glue.specs.errors import GlueError

MANIFEST_FILE = "manifest.json"

_BLOCK = 4 * 1024 * 1024


class DamagedFolderError(GlueError):
    """A folder does not hold what its manifest says."""


@dataclass(frozen=True)
class ManifestEntry:
    """One file: its path relative to the folder with forward slashes, its size in bytes, its sha256 in hexadecimal."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Every file of a folder but the manifest itself, sorted by path."""

    files: tuple[ManifestEntry, ...]

    @property
    def digest(self) -> str:
        """The name of the folder's content: equal for equal paths and bytes, wherever and whenever written."""
        return digest_of(self.as_json())

    @property
    def size(self) -> int:
        """The bytes of all files together."""
        return sum(entry.size for entry in self.files)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `as_json`."""
        return cls(tuple(ManifestEntry(**entry) for entry in value["files"]))


def build_manifest(folder: Path, known: Mapping[str, str] = MappingProxyType({})) -> Manifest:
    """Digest every file below the folder. Files whose sha256 is `known`, by path in the folder, are not read."""
    return Manifest(tuple(_entry(folder, path, known) for path in _files(folder)))


def verify_manifest(folder: Path, manifest: Manifest) -> None:
    """Check that the folder holds exactly what the manifest says, byte for byte.

    Raises:
        DamagedFolderError: a file is missing, changed or not in the manifest.
    """
    expected = {entry.path: entry for entry in manifest.files}
    actual = {_relative(folder, path): path for path in _files(folder)}
    strange = sorted(expected.keys() ^ actual.keys())
    if strange:
        where = "is missing" if strange[0] in expected else "is not in the manifest"
        raise DamagedFolderError(f"{strange[0]} {where}")
    for name, path in actual.items():
        if path.stat().st_size != expected[name].size or _entry(folder, path) != expected[name]:
            raise DamagedFolderError(f"{name} has not the bytes that the manifest names")


def write_manifest(folder: Path, token: int, known: Mapping[str, str] = MappingProxyType({})) -> Manifest:
    """Digest the folder and put the manifest into it, durably: from now on the folder counts as finished.

    `known` is as for `build_manifest`: whoever has just written a file knows its sha256.

    Raises:
        DiskFullError: there is no space.
    """
    manifest = build_manifest(folder, known)
    write_whole(folder / MANIFEST_FILE, canonical_json(manifest.as_json()).encode(), token)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest that lies in a finished folder.

    Raises:
        DamagedFolderError: there is none, or it cannot be read.
    """
    try:
        return Manifest.from_json(json.loads((folder / MANIFEST_FILE).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        raise DamagedFolderError(
            f"{folder.name} has no readable {MANIFEST_FILE}: it is not a finished folder"
        ) from None


def publish_folder(work: Path, artifacts: Path) -> tuple[Manifest, str]:
    """Move a finished folder to `artifacts/<first two digits>/<digest>` in one step; its location below `artifacts`.

    Both must be on one file system. The same content twice is fine: the copy that is there stays, the new
    one is removed.

    Raises:
        DiskFullError: there is no space for the manifest.
    """
    remove_temporaries(work)
    manifest = write_manifest(work, token=0)
    location = f"{manifest.digest[:2]}/{manifest.digest}"
    target = artifacts / location
    target.parent.mkdir(parents=True, exist_ok=True)
    _flush_all(work)
    try:
        work.rename(target)
    except OSError:
        if not (target / MANIFEST_FILE).is_file():
            raise
        # Somebody has published the same content: a rename does not replace a folder that is not empty.
        shutil.rmtree(work)
    flush_folder(target.parent)
    return manifest, location


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256", _bufsize=_BLOCK).hexdigest()


def _files(folder: Path) -> Iterable[Path]:
    found = [
        path
        for path in folder.rglob("*")
        if path.is_file() and TEMPORARY not in path.name and path.name != MANIFEST_FILE
    ]
    return sorted(found, key=lambda path: _relative(folder, path))


def _relative(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _entry(folder: Path, path: Path, known: Mapping[str, str] = MappingProxyType({})) -> ManifestEntry:
    name = _relative(folder, path)
    return ManifestEntry(name, path.stat().st_size, known.get(name) or file_sha256(path))


def _flush_all(folder: Path) -> None:
    # The rename must not become durable before what it publishes.
    for path in (*_files(folder), folder / MANIFEST_FILE):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for path in (folder, *(each for each in folder.rglob("*") if each.is_dir())):
        flush_folder(path)
