"""Models of the Hub on disk: each file once, whoever asks for it, resumed after any crash and checked by its digest.

Below the cache lie `blobs/<digest>`, `models/<org>--<name>/<commit>/` with names for the blobs, and `locks/`.
A folder counts as a model once it holds `.complete`. All workers that share the cache share the files. Pickles are
converted into the folder by whoever is handed in for that, and then go.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from time import time

from glue.references.headers import INDEX_FILE
from glue.references.hub_access import HubAccess, HubUnavailableError, Say, is_offline, patiently
from glue.references.hub_cache import COMPLETE, RAW, forget, locked, make_room, size_of
from glue.references.hub_files import (
    RemoteFile,
    RemoteModel,
    companions_of,
    content_of,
    digest_matches,
    is_pickled,
    look_up,
    opened,
    pickles_of,
    shards_of,
    write_json,
)
from glue.references.hub_names import HubReference
from glue.references.pickles import PICKLE_INDEX

# Makes a folder of safetensors, with config and tokenizer, out of one with pickles.
Convert = Callable[[Path, Path], None]


def model_folder(reference: HubReference, commit: str, access: HubAccess) -> Path:
    """Where a model lies, or will."""
    return access.cache / "models" / reference.folder_name / commit


def download(repo: str, commit: str, access: HubAccess, say: Say, convert: Convert) -> Path:
    """The folder of a model at a commit, with all its files; `say` takes a fraction and a line.

    Raises:
        InvalidInputError: the token may not read it, or its pickles hold something else than weights.
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
    if is_pickled(model):
        _fetch_and_convert(model, folder, access, say, began, convert)
    else:
        _Download(model, folder, access, say, began).run()
        write_json(folder / COMPLETE, model.as_json())
    return folder


def _fetch_and_convert(
    model: RemoteModel, folder: Path, access: HubAccess, say: Say, began: float, convert: Convert
) -> None:
    raw = folder.with_name(f"{folder.name}{RAW}")
    with locked(access.cache, raw.name):
        if (folder / COMPLETE).is_file():
            return
        _Download(model, raw, access, say, began).run()
        say(1.0, f"{model.repo}: converting")
        make_room(access, sum(file.stat().st_size for file in raw.iterdir()), began)
        convert(raw, folder)
        write_json(folder / COMPLETE, model.as_json())
        with locked(access.cache, "room"):
            forget(raw, access.cache)


def download_files(model: RemoteModel, files: Sequence[RemoteFile], folder: Path, access: HubAccess, say: Say) -> None:
    """These files of a repository below their names in a folder.

    Raises:
        InvalidInputError: the token may not read them.
        DiskFullError: they have no room beside the models that other jobs need.
        HubUnavailableError: the Hub does not answer, or what arrives is damaged, time and again.
    """
    _Download(model, folder, access, say, time()).fetch(files)


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
        weights = self._weights()
        self._total += sum(file.size for file in weights)
        make_room(self._access, sum(self._missing(file) for file in weights), self._began)
        for file in weights:
            self._fetch(file)

    def _weights(self) -> list[RemoteFile]:
        if is_pickled(self._model):
            return pickles_of(self._model, content_of(self._folder / PICKLE_INDEX))
        return shards_of(self._model, content_of(self._folder / INDEX_FILE))

    def fetch(self, files: Sequence[RemoteFile]) -> None:
        (self._access.cache / "blobs").mkdir(parents=True, exist_ok=True)
        self._total = sum(file.size for file in files)
        make_room(self._access, sum(self._missing(file) for file in files), self._began)
        for file in files:
            self._fetch(file)

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
                name.parent.mkdir(parents=True, exist_ok=True)
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
