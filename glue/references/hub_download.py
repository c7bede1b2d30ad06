"""Models of the Hub on disk: each file once, whoever asks for it, resumed after any crash and checked by its digest.

Below the cache lie `blobs/<digest>`, `models/<org>--<name>/<commit>/` with names for the blobs, and `locks/`.
A folder counts as a model once it holds `.complete`. All workers that share the cache share the files.
"""

import os
from pathlib import Path
from time import time

from glue.references.headers import INDEX_FILE
from glue.references.hub_access import HubAccess, HubUnavailableError, Say, is_offline, patiently
from glue.references.hub_cache import COMPLETE, locked, make_room, size_of
from glue.references.hub_files import (
    RemoteFile,
    RemoteModel,
    companions_of,
    digest_matches,
    look_up,
    opened,
    shards_of,
    write_json,
)
from glue.references.hub_names import HubReference


def model_folder(reference: HubReference, commit: str, access: HubAccess) -> Path:
    """Where a model lies, or will."""
    return access.cache / "models" / reference.folder_name / commit


def download(repo: str, commit: str, access: HubAccess, say: Say) -> Path:
    """The folder of a model at a commit, with all its files; `say` takes a fraction and a line.

    Raises:
        InvalidInputError: the token may not read it.
        DiskFullError: it has no room beside the models that other jobs need.
        HubUnavailableError: the Hub does not answer, or what arrives is damaged, time and again.
    """
    began, reference = time(), HubReference(repo, commit)
    folder = model_folder(reference, commit, access)
    if (folder / COMPLETE).is_file():
        os.utime(folder / COMPLETE)
        return folder
    if is_offline():
        raise HubUnavailableError(f"{repo} was not downloaded yet, and this service is offline (HF_HUB_OFFLINE)")
    model = look_up(reference, access)
    _Download(model, folder, access, say, began).run()
    return folder


class _Download:
    """One model on its way; another worker may be at the same files."""

    def __init__(self, model: RemoteModel, folder: Path, access: HubAccess, say: Say, began: float) -> None:
        self._model, self._folder, self._access, self._say = model, folder, access, say
        self._began, self._done, self._total = began, 0, 0

    def run(self) -> None:
        (self._access.cache / "blobs").mkdir(parents=True, exist_ok=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        companions = companions_of(self._model)
        self._total = sum(file.size for file in companions)
        for file in companions:
            self._fetch(file)
        index = self._folder / INDEX_FILE
        shards = shards_of(self._model, index.read_bytes() if index.is_file() else None)
        self._total += sum(file.size for file in shards)
        make_room(self._access, sum(self._missing(file) for file in shards), self._began)
        for file in shards:
            self._fetch(file)
        write_json(self._folder / COMPLETE, self._model.as_json())

    def _missing(self, file: RemoteFile) -> int:
        blob = self._blob(file)
        partial = _partial(blob)
        return 0 if blob.is_file() else file.size - size_of(partial)

    def _blob(self, file: RemoteFile) -> Path:
        return self._access.cache / "blobs" / file.digest

    def _fetch(self, file: RemoteFile) -> None:
        """The file below its name in the folder; who finds it locked waits for the one who fetches it."""
        blob, name = self._blob(file), self._folder / file.path
        with locked(self._access.cache, file.digest):
            if not blob.is_file():
                patiently(lambda: self._receive(file, blob), lambda line: self._tell(line))
            if not name.is_file():
                os.link(blob, name)
        self._done += file.size
        self._tell(file.path)

    def _receive(self, file: RemoteFile, blob: Path) -> None:
        partial = _partial(blob)
        start = size_of(partial)
        if start > file.size:
            partial.unlink()
            start = 0
        if start < file.size or not partial.is_file():
            self._append(file, partial, start)
        if not digest_matches(partial, file):
            partial.unlink()
            raise HubUnavailableError(f"{self._model.repo}/{file.path} arrived damaged")
        partial.chmod(0o444)
        partial.replace(blob)

    def _append(self, file: RemoteFile, partial: Path, start: int) -> None:
        with partial.open("ab") as out:
            if file.size:
                with opened(self._model, file, start, file.size, self._access) as chunks:
                    for chunk in chunks:
                        out.write(chunk)
                        self._tell(file.path, out.tell())
            out.flush()
            os.fsync(out.fileno())
        if partial.stat().st_size < file.size:
            raise HubUnavailableError(f"{self._model.repo}/{file.path} broke off")

    def _tell(self, line: str, inside: int = 0) -> None:
        fraction = (self._done + inside) / max(self._total, 1)
        self._say(min(fraction, 1.0), f"{self._model.repo}: {line}")


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.partial")
