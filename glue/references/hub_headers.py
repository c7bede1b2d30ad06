"""What a model's headers and configs tell, without its weights: a folder like the model's, with holes for tensors.

Everything that looks at local folders looks at these alike. Files that several repositories share, such as a
tokenizer, are fetched once.
"""

import json
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from uuid import uuid4

from glue.references.adapters import ADAPTER_WEIGHTS
from glue.references.headers import INDEX_FILE, MAX_HEADER_BYTES, SINGLE_FILE
from glue.references.hub_access import HubAccess, HubUnavailableError, is_offline, patiently
from glue.references.hub_cache import locked
from glue.references.hub_files import (
    WEIGHT_SUFFIXES,
    RemoteFile,
    RemoteModel,
    companions_of,
    content_of,
    digest_of_bytes,
    is_adapter,
    is_pickled,
    look_up,
    pickles_of,
    read_range,
    shards_of,
    write_json,
)
from glue.references.hub_names import HubReference
from glue.references.pickles import PICKLE_INDEX, PickledTensor, pickled_tensors
from glue.references.reading import refusal
from glue.specs.errors import InvalidInputError, Problem

# Enough for the header of almost any shard, so that one request does.
FIRST_BYTES = 64 * 1024
# Tied weights lie in a pickle once and are described twice.
_MOST_COPIES = 2


def headers_of(reference: HubReference, access: HubAccess) -> tuple[RemoteModel, Path]:
    """The commit that a reference stands at, and a folder with its configs, tokenizer and headers.

    Offline, what an earlier call found is used.

    Raises:
        InvalidInputError: there is no such repository or revision, the token may not read it, or it is not here
            and the service is offline.
        IncompatibleModelsError: a file is damaged.
        HubUnavailableError: the Hub does not answer.
    """
    if is_offline():
        return _remembered(reference, access)
    model = look_up(reference, access)
    folder = _folder(reference, model.commit, access)
    if not folder.is_dir():
        _build(model, folder, access)
    else:
        # What is here was fetched with a token that had the right to; this one has to show its own.
        _show_right(model, access)
    _remember(reference, model, access)
    return model, folder


def _folder(reference: HubReference, commit: str, access: HubAccess) -> Path:
    return access.cache / "headers" / reference.folder_name / commit


def _build(model: RemoteModel, folder: Path, access: HubAccess) -> None:
    unfinished = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}")
    unfinished.mkdir(parents=True)
    try:
        for file in companions_of(model):
            shutil.copyfile(_companion(model, file, access), unfinished / file.path)
        if is_pickled(model):
            _describe_pickles(model, unfinished, access)
        else:
            _take_headers(model, unfinished, access)
        unfinished.rename(folder)
    except OSError:
        # Somebody else was faster.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _take_headers(model: RemoteModel, folder: Path, access: HubAccess) -> None:
    shards = shards_of(model, content_of(folder / INDEX_FILE))
    for file in shards:
        _write_with_holes(folder / file.path, file.size, _header(model, file, access))
    if not shards:
        # Names tell why the model cannot be used.
        for name in model.files:
            if name.endswith(WEIGHT_SUFFIXES):
                (folder / name).touch()


def _describe_pickles(model: RemoteModel, folder: Path, access: HubAccess) -> None:
    """The header of the safetensors file that the pickles can be converted into, from their own descriptions."""
    tensors: dict[str, PickledTensor] = {}
    files = pickles_of(model, content_of(folder / PICKLE_INDEX))
    for file in files:
        tensors |= pickled_tensors(file.path, file.size, partial(read_range, model, file, access=access))
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.bytes
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    if end > _MOST_COPIES * sum(file.size for file in files):
        raise refusal("pickle", "its tensors are larger than its files", "save the model with save_pretrained()")
    content = json.dumps(header).encode()
    converted = ADAPTER_WEIGHTS if is_adapter(model) else SINGLE_FILE
    _write_with_holes(folder / converted, 8 + len(content) + end, len(content).to_bytes(8, "little") + content)


def _companion(model: RemoteModel, file: RemoteFile, access: HubAccess) -> Path:
    """A whole small file, by its digest; repositories that share it fetch it once."""
    shared = access.cache / "companions" / file.digest
    shared.parent.mkdir(parents=True, exist_ok=True)
    with locked(access.cache, file.digest):
        if not shared.is_file():
            unfinished = shared.with_name(f".{shared.name}.{uuid4().hex[:8]}")
            unfinished.write_bytes(patiently(lambda: _whole(model, file, access)))
            unfinished.replace(shared)
    return shared


def _whole(model: RemoteModel, file: RemoteFile, access: HubAccess) -> bytes:
    content = read_range(model, file, 0, file.size, access) if file.size else b""
    if digest_of_bytes(content, file) != file.digest:
        raise HubUnavailableError(f"{model.repo}/{file.path} arrived damaged")
    return content


def _show_right(model: RemoteModel, access: HubAccess) -> None:
    files = companions_of(model)
    if files:
        read_range(model, files[0], 0, 1, access)


def _header(model: RemoteModel, file: RemoteFile, access: HubAccess) -> bytes:
    """The first bytes of a shard: eight for the header's length, and the header."""
    first = read_range(model, file, 0, min(FIRST_BYTES, file.size), access)
    end = 8 + int.from_bytes(first[:8], "little")
    if len(first) < 8 or end > min(file.size, MAX_HEADER_BYTES + 8):
        # It is not safetensors; whoever reads it next says so in words.
        return first
    return first[:end] if end <= len(first) else first + read_range(model, file, len(first), end, access)


def _write_with_holes(path: Path, size: int, header: bytes) -> None:
    path.write_bytes(header)
    os.truncate(path, size)


def _remember(reference: HubReference, model: RemoteModel, access: HubAccess) -> None:
    known = _known(reference, access)
    known.parent.mkdir(parents=True, exist_ok=True)
    kept = dict(_revisions(known))
    kept[reference.revision] = kept[model.commit] = {"commit": model.commit, "licence": model.licence}
    write_json(known, kept)


def _remembered(reference: HubReference, access: HubAccess) -> tuple[RemoteModel, Path]:
    known = _revisions(_known(reference, access)).get(reference.revision)
    folder = _folder(reference, str(known["commit"]), access) if known else None
    if known is None or folder is None or not folder.is_dir():
        detail = f"{reference.repo}@{reference.revision} is not here, and the service is offline"
        fix = "submit it once while the service reaches the Hub, or give a local folder"
        raise InvalidInputError(f"{detail}; {fix}", [Problem("", "offline", detail, fix)])
    return RemoteModel(reference.repo, str(known["commit"]), known["licence"], {}), folder


def _known(reference: HubReference, access: HubAccess) -> Path:
    # By token, so that offline nobody sees what only somebody else may see.
    return access.cache / "revisions" / access.identity / f"{reference.folder_name}.json"


def _revisions(path: Path) -> Mapping[str, Mapping[str, str | None]]:
    try:
        found: Mapping[str, Mapping[str, str | None]] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found
