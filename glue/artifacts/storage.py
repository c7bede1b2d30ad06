"""Finished folders on object storage, under the same locations and with the same manifests as on disk.

`artifacts/<location>` on disk and `<url>/<location>` there hold the same files. A folder counts as stored once its
manifest is there, which is written last; a second writer of the same content writes the same bytes.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

import fsspec

from glue.checkpoints.disk import full_disk_is_told
from glue.checkpoints.manifest import (
    MANIFEST_FILE,
    Manifest,
    ManifestEntry,
    build_manifest,
    read_manifest,
    verify_manifest,
)
from glue.specs.digests import canonical_json
from glue.specs.errors import GlueError, Reason
from glue.telemetry.metrics import TRANSFERRED

Check = Callable[[], None]

_BLOCK = 4 * 1024 * 1024
_FETCHING = ".fetch."


class StorageError(GlueError):
    """Object storage lacks a folder that the records name, or holds another one under its name."""

    reason = Reason.INTERNAL


def _never() -> None:
    """The check of a caller that nobody interrupts."""


class ArtifactStorage:
    """The object storage of one service. To be shared by threads; fsspec's clients are.

    `check` is called between blocks and files; whatever it raises ends the transfer and leaves nothing that looks
    finished.
    """

    def __init__(self, url: str, **options: Any) -> None:
        # Listings change under us: other workers write them. Only a file system needs its folders made.
        folders = {} if url.startswith("s3:") else {"auto_mkdir": True}
        self._files, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **folders, **options)
        self._root = PurePosixPath(root)

    def has(self, location: str) -> bool:
        """Whether the whole folder is there."""
        return bool(self._files.exists(self._path(location, MANIFEST_FILE)))

    def store(self, artifacts: Path, location: str, check: Check = _never) -> None:
        """Copy a finished folder there; files that are there already with their size are kept.

        Raises:
            DamagedFolderError: the folder on disk has no manifest.
        """
        if self.has(location):
            return
        for entry in read_manifest(artifacts / location).files:
            check()
            if self._size(location, entry.path) != entry.size:
                self._put(artifacts / location / entry.path, location, entry.path, check)
        self._put(artifacts / location / MANIFEST_FILE, location, MANIFEST_FILE, check)

    def fetch(self, artifacts: Path, location: str, check: Check = _never) -> None:
        """Have the folder on disk, verified byte for byte; nothing happens if it is there.

        Raises:
            StorageError: it is not stored, or its bytes are not those of its manifest.
            DiskFullError: there is no space.
        """
        target = artifacts / location
        if (target / MANIFEST_FILE).is_file():
            return
        fresh = target.with_name(f"{target.name}{_FETCHING}{uuid4().hex}")
        try:
            self._get(location, fresh, check)
            with suppress(OSError):
                # Another slot of this machine may have been faster.
                fresh.rename(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        if not (target / MANIFEST_FILE).is_file():
            raise StorageError(f"{location} could not be put in its place")

    def share(self, folder: Path, location: str, paths: Collection[str] | None = None, check: Check = _never) -> None:
        """Copy a folder there that is no artifact, or these files of it, with a manifest; what is stored is kept."""
        if self.has(location):
            return
        files = [entry for entry in build_manifest(folder).files if paths is None or entry.path in paths]
        for entry in files:
            check()
            if self._size(location, entry.path) != entry.size:
                self._put(folder / entry.path, location, entry.path, check)
        manifest = canonical_json(Manifest(tuple(files)).as_json()).encode()
        self._files.pipe_file(self._path(location, MANIFEST_FILE), manifest)

    def shared_bytes(self, location: str, folder: Path) -> int:
        """How much of what was shared this folder lacks.

        Raises:
            StorageError: it is not stored, or its manifest cannot be read.
        """
        return sum(entry.size for entry in self._shared(location).files if not _is_there(folder, entry))

    def fetch_shared(self, location: str, folder: Path, last: str = "", check: Check = _never) -> None:
        """Have what was shared in the folder, each file verified; a file that is there is kept, `last` comes last.

        Nobody else may fetch into this folder meanwhile.

        Raises:
            StorageError: it is not stored, or its bytes are not those of its manifest.
            DiskFullError: there is no space.
        """
        for left in folder.glob(f"{_FETCHING}*"):
            shutil.rmtree(left, ignore_errors=True)
        for entry in sorted(self._shared(location).files, key=lambda entry: entry.path == last):
            check()
            if not _is_there(folder, entry):
                self._get_shared(location, entry, folder, check)

    def _shared(self, location: str) -> Manifest:
        try:
            return Manifest.from_json(json.loads(self._files.cat_file(self._path(location, MANIFEST_FILE))))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            raise StorageError(f"{location} is not on object storage, or its manifest cannot be read") from None

    def _get_shared(self, location: str, entry: ManifestEntry, folder: Path, check: Check) -> None:
        fresh = f"{_FETCHING}{uuid4().hex}"
        try:
            self._get_file(location, entry.path, folder / fresh, check)
            with (folder / fresh / entry.path).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                    raise StorageError(f"{entry.path} of {location} has not the bytes that its manifest names")
            (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
            (folder / fresh / entry.path).replace(folder / entry.path)
        finally:
            shutil.rmtree(folder / fresh, ignore_errors=True)

    def read(self, location: str, path: str, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end` (exclusive) of one file.

        Raises:
            FileNotFoundError: it is not there; before the first block.
        """
        file = self._files.open(self._path(location, path), "rb", cache_type="readahead", block_size=_BLOCK)
        return self._blocks(file, start, end)

    @staticmethod
    def _blocks(file: Any, start: int, end: int) -> Iterator[bytes]:
        with file:
            file.seek(start)
            while start < end and (block := file.read(min(_BLOCK, end - start))):
                start += len(block)
                TRANSFERRED.labels("down").inc(len(block))
                yield block

    def _get(self, location: str, folder: Path, check: Check) -> None:
        if not self.has(location):
            raise StorageError(f"{location} is not on object storage")
        self._get_file(location, MANIFEST_FILE, folder, check)
        manifest = read_manifest(folder)
        for entry in manifest.files:
            check()
            self._get_file(location, entry.path, folder, check)
        self._verify(location, folder, manifest)

    def _verify(self, location: str, folder: Path, manifest: Manifest) -> None:
        if PurePosixPath(location).name != manifest.digest:
            raise StorageError(f"what is stored as {location} has another manifest")
        verify_manifest(folder, manifest)

    def _get_file(self, location: str, path: str, folder: Path, check: Check) -> None:
        target = folder / path
        if not target.resolve().is_relative_to(folder.resolve()):
            raise StorageError(f"the manifest of {location} names {path!r}")
        target.parent.mkdir(parents=True, exist_ok=True)
        stored = self._path(location, path)
        with full_disk_is_told(target), self._files.open(stored, "rb") as source, target.open("wb") as copy:
            _pump(source, copy, "down", check)

    def _put(self, source: Path, location: str, path: str, check: Check) -> None:
        # Closing is what makes an upload real: after an error within, the block must not close it as if it were whole.
        upload = self._files.open(self._path(location, path), "wb")
        try:
            with source.open("rb") as file:
                _pump(file, upload, "up", check)
        except BaseException:
            with suppress(Exception):
                upload.discard()
                # Otherwise its finalizer would close it.
                upload.closed = True
            raise
        upload.close()

    def _size(self, location: str, path: str) -> int | None:
        try:
            return int(self._files.info(self._path(location, path))["size"])
        except FileNotFoundError:
            return None

    def _path(self, location: str, path: str) -> str:
        return str(self._root / location / path)


def _is_there(folder: Path, entry: ManifestEntry) -> bool:
    path = folder / entry.path
    return path.is_file() and path.stat().st_size == entry.size


def _pump(source: Any, target: Any, direction: str, check: Check) -> None:
    while block := source.read(_BLOCK):
        check()
        target.write(block)
        TRANSFERRED.labels(direction).inc(len(block))
