"""Which files of a repository make the model, and single files or parts of them over HTTP.

Every file is known by its digest before a byte of it is fetched: sha256, or git's name for a small one.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from huggingface_hub import get_session, hf_hub_url
from huggingface_hub.utils._http import hf_raise_for_status

from glue.references.adapters import ADAPTER_WEIGHTS, PICKLED_ADAPTER
from glue.references.folders import ADAPTER_FILE, CONFIG_FILE, GENERATION_CONFIG_FILE, TOKENIZER_FILES
from glue.references.headers import INDEX_FILE, SINGLE_FILE
from glue.references.hub_access import HubAccess, patiently, refusals_of
from glue.references.hub_names import HubReference
from glue.references.pickles import PICKLE_INDEX, SINGLE_PICKLE
from glue.references.reading import parse_json, refusal

COMPANIONS = (CONFIG_FILE, GENERATION_CONFIG_FILE, ADAPTER_FILE, INDEX_FILE, *TOKENIZER_FILES)
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5")
MAX_COMPANION_BYTES = 256 * 1024 * 1024

_IDENTIFIER = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}")
_TIMEOUT_SECONDS = 30.0
# What a download that breaks off loses at most.
_CHUNK_BYTES = 128 * 1024


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at a commit; `digest` is its sha256, or with `is_git` git's name for it."""

    path: str
    size: int
    digest: str
    is_git: bool


@dataclass(frozen=True)
class RemoteModel:
    """A repository at a commit: the files at its top, by name, and the licence that its card names.

    Of a data set (`kind`) the files in folders too.
    """

    repo: str
    commit: str
    licence: str | None
    files: Mapping[str, RemoteFile]
    kind: str = "model"

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        files = [vars(file) for file in self.files.values()]
        return {"repo": self.repo, "commit": self.commit, "licence": self.licence, "files": files, "kind": self.kind}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "RemoteModel":
        """The inverse of `as_json`."""
        files = [RemoteFile(**file) for file in value["files"]]
        by_path = {file.path: file for file in files}
        return cls(value["repo"], value["commit"], value["licence"], by_path, value.get("kind", "model"))


def look_up(reference: HubReference, access: HubAccess) -> RemoteModel:
    """The commit that a reference stands at now, with its files; one request.

    Raises:
        InvalidInputError: there is no such repository or revision, or the token may not see it.
        HubUnavailableError: the Hub does not answer.
    """

    def ask() -> Any:
        with refusals_of(reference.repo):
            return access.api().model_info(reference.repo, revision=reference.revision, files_metadata=True)

    info = patiently(ask)
    files = remote_files(info.siblings)
    card = info.card_data.to_dict() if info.card_data is not None else {}
    licence = card.get("license")
    if licence == "other":
        licence = card.get("license_name") or licence
    return RemoteModel(
        reference.repo,
        str(info.sha),
        _plain_licence(licence),
        {file.path: file for file in files if "/" not in file.path},
    )


def _plain_licence(licence: Any) -> str | None:
    # It comes into cards of ours, so free text of somebody else's does not pass.
    if not isinstance(licence, str):
        return None
    return licence if _IDENTIFIER.fullmatch(licence) else "other"


def shards_of(model: RemoteModel, index: bytes | None) -> list[RemoteFile]:
    """The safetensors files that hold the weights: the single one, or those of the index; none if there are none.

    Raises:
        IncompatibleModelsError: the index is damaged.
    """
    single = ADAPTER_WEIGHTS if is_adapter(model) else SINGLE_FILE
    if single in model.files:
        return [model.files[single]]
    return _named(model, INDEX_FILE, index, ".safetensors")


def is_adapter(model: RemoteModel) -> bool:
    """Whether the repository holds an adapter and no whole model."""
    whole = {SINGLE_FILE, INDEX_FILE, SINGLE_PICKLE, PICKLE_INDEX}
    return ADAPTER_FILE in model.files and not whole & model.files.keys()


def is_pickled(model: RemoteModel) -> bool:
    """Whether the weights are there as pickles alone, so that they have to be converted."""
    safetensors, pickles = {SINGLE_FILE, INDEX_FILE}, {SINGLE_PICKLE, PICKLE_INDEX}
    if is_adapter(model):
        safetensors, pickles = {ADAPTER_WEIGHTS}, {PICKLED_ADAPTER}
    return not safetensors & model.files.keys() and bool(pickles & model.files.keys())


def pickles_of(model: RemoteModel, index: bytes | None) -> list[RemoteFile]:
    """The pickles that hold the weights of such a model: the single one, or those of the index.

    Raises:
        IncompatibleModelsError: the index is damaged.
    """
    single = PICKLED_ADAPTER if is_adapter(model) else SINGLE_PICKLE
    if single in model.files:
        return [model.files[single]]
    return _named(model, PICKLE_INDEX, index, ".bin")


def _named(model: RemoteModel, name: str, index: bytes | None, suffix: str) -> list[RemoteFile]:
    weight_map = parse_json(index, name).get("weight_map") if index is not None else {}
    if not isinstance(weight_map, dict):
        raise refusal("corrupt", f"{name} has no weight_map", "save the model again")
    shards = sorted({shard for shard in weight_map.values() if isinstance(shard, str)})
    if name == PICKLE_INDEX and any(shard not in model.files for shard in shards):
        # Of safetensors whoever opens the folder tells it; of pickles what is there would look whole.
        raise refusal("missing_shards", f"{name} names files that are not there", "upload all files of the model")
    return [model.files[shard] for shard in shards if shard in model.files and shard.endswith(suffix)]


def companions_of(model: RemoteModel) -> list[RemoteFile]:
    """Everything but the weights that a model consists of.

    Raises:
        IncompatibleModelsError: a file is larger than any such file is.
    """
    names = (*COMPANIONS, PICKLE_INDEX) if is_pickled(model) else COMPANIONS
    found = [model.files[name] for name in names if name in model.files]
    for file in found:
        if file.size > MAX_COMPANION_BYTES:
            raise refusal("too_large", f"{file.path} has {file.size} bytes", "check that it is the right file")
    return found


def read_range(model: RemoteModel, file: RemoteFile, first: int, last: int, access: HubAccess) -> bytes:
    """The bytes from `first` up to but not `last` of a file.

    Raises:
        InvalidInputError: the token may not read it.
        HubUnavailableError: the Hub does not answer, or breaks off.
    """

    def ask() -> bytes:
        content = bytearray()
        with opened(model, file, first, last, access) as chunks:
            for chunk in chunks:
                content += chunk
                if len(content) >= last - first:
                    break
        return bytes(content[: last - first])

    return patiently(ask)


@contextmanager
def opened(model: RemoteModel, file: RemoteFile, first: int, last: int, access: HubAccess) -> Iterator[Iterator[bytes]]:
    """Chunks of a file from the byte `first` on; a server that knows no ranges is read from the beginning.

    Raises:
        InvalidInputError: the token may not read it.
        HubUnavailableError: the Hub does not answer, or breaks off.
    """
    url = hf_hub_url(model.repo, file.path, repo_type=model.kind, revision=model.commit, endpoint=access.endpoint)
    headers = access.headers() | {"Range": f"bytes={first}-{last - 1}", "Accept-Encoding": "identity"}
    with (
        refusals_of(f"{model.repo}/{file.path}"),
        get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_SECONDS, follow_redirects=True) as response,
    ):
        hf_raise_for_status(response)
        chunks = response.iter_bytes(_CHUNK_BYTES)
        yield _behind(chunks, first) if response.status_code == 200 and first else chunks


def digest_matches(path: Path, file: RemoteFile) -> bool:
    """Whether the bytes at `path` are the file's."""
    hasher = hashlib.sha1(usedforsecurity=False) if file.is_git else hashlib.sha256()
    if file.is_git:
        hasher.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as stream:
        while block := stream.read(32 * _CHUNK_BYTES):
            hasher.update(block)
    return hasher.hexdigest() == file.digest


def digest_of_bytes(content: bytes, file: RemoteFile) -> str:
    """The digest by which the Hub names a file of that kind with these bytes."""
    if file.is_git:
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return hashlib.sha256(content).hexdigest()


def content_of(path: Path) -> bytes | None:
    """The bytes of a small file of ours, if it is there."""
    return path.read_bytes() if path.is_file() else None


def write_json(path: Path, value: Any) -> None:
    """Replace a small file in one step."""
    # A name of its own: several may write the same file at once.
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    partial.write_text(json.dumps(value, sort_keys=True), encoding="utf-8")
    partial.replace(path)


def remote_files(siblings: Iterable[Any] | None) -> list[RemoteFile]:
    """The files of a repository as the client lists them, without those that have no digest."""
    return [file for sibling in siblings or () if (file := _remote_file(sibling)) is not None]


def _remote_file(sibling: Any) -> RemoteFile | None:
    lfs = sibling.lfs
    sha256 = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    digest = sha256 or sibling.blob_id
    # Whoever answers with something else than a digest shall not choose the name of a file of ours.
    if sibling.size is None or digest is None or not digest.isalnum():
        return None
    return RemoteFile(sibling.rfilename, sibling.size, digest, sha256 is None)


def _behind(chunks: Iterator[bytes], first: int) -> Iterator[bytes]:
    passed = 0
    for chunk in chunks:
        yield chunk[max(0, first - passed) :]
        passed += len(chunk)
