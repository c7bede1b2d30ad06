"""Local folders as references: kept inside the roots, pinned to a commit. Never opens a network connection."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from glue.references.headers import raw_header
from glue.references.reading import read_bytes, read_json, refusal
from glue.specs.digests import digest_of
from glue.specs.errors import InvalidInputError, Problem

SMALL_FILE_BYTES = 1024 * 1024
MAX_CONFIG_BYTES = 8 * 1024 * 1024
MAX_FILES = 20_000
CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
ADAPTER_FILE = "adapter_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def resolve_folder(source: str, roots: Sequence[Path]) -> Path:
    """The real path of an absolute `source`, with everything in it inside one of the `roots`.

    Raises:
        InvalidInputError: it is relative, missing, no folder, outside the roots, or a link in it leads outside.
    """
    if not Path(source).is_absolute():
        raise _invalid("not_absolute", f"{source[:200]!r} is not an absolute path", "give the folder's absolute path")
    real_roots = [root.resolve() for root in roots]
    allowed = ", ".join(str(root) for root in real_roots) or "none"
    try:
        folder = Path(source).resolve()
        # Whether a folder outside the roots exists is nobody's business, so this check comes first.
        if not _inside(folder, real_roots):
            fix = f"move it below one of the allowed roots ({allowed}) or add its parent to GLUE_ROOTS"
            raise _invalid("outside_roots", f"{source} lies outside the folders that may be read", fix)
        if not folder.is_dir():
            raise _invalid("no_folder", f"{source} is not a folder", "check the path")
        _check_links(folder, real_roots)
    except (OSError, RuntimeError, ValueError) as error:
        raise _invalid("unreadable", f"{source[:200]} cannot be read: {error}", "check the path and its mode") from None
    return folder


def folder_commit(folder: Path) -> str:
    """What pins a local folder: sha256 over the names and sizes of its files, the contents of those below
    1 MiB and the headers of larger safetensors. Quick; weights themselves are not read.

    Raises:
        IncompatibleModelsError: a file cannot be read, or there are more than 20,000.
    """
    return digest_of(
        [[os.fsencode(path.relative_to(folder)).hex(), *_fingerprint(path)] for path in files_below(folder)]
    )


def files_below(folder: Path) -> list[Path]:
    """The files below a folder, sorted; hidden ones and Python's caches are left aside, linked folders not entered.

    Raises:
        IncompatibleModelsError: there are more than 20,000.
    """
    found: list[Path] = []
    for path in _walk(folder):
        found.append(path)
        if len(found) > MAX_FILES:
            raise refusal("too_many_files", f"{folder} holds more than {MAX_FILES} files", "give a smaller folder")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        IncompatibleModelsError: it is missing, too large or no JSON object.
    """
    if (folder / CONFIG_FILE).is_file():
        return read_json(folder / CONFIG_FILE, MAX_CONFIG_BYTES)
    if (folder / ADAPTER_FILE).is_file():
        fix = "merge the adapter into its base model and save the result"
        raise refusal("adapter", "the folder holds an adapter, not a whole model", fix)
    raise refusal("no_config", "the folder has no config.json", "give the folder of a model saved by transformers")


def _invalid(code: str, detail: str, fix: str) -> InvalidInputError:
    return InvalidInputError(f"{detail}; {fix}", [Problem("", code, detail, fix)])


def _inside(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _check_links(folder: Path, roots: Sequence[Path]) -> None:
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and not _inside(path.resolve(), roots):
                inner = path.relative_to(folder)
                fix = "replace the link by the file, or allow its target by GLUE_ROOTS"
                raise _invalid("outside_roots", f"in {folder} the link {inner} leads outside the allowed roots", fix)


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def _fingerprint(path: Path) -> tuple[int, str]:
    size = path.stat().st_size
    if size < SMALL_FILE_BYTES:
        return size, hashlib.sha256(read_bytes(path, SMALL_FILE_BYTES)).hexdigest()
    if path.suffix == ".safetensors":
        return size, hashlib.sha256(raw_header(path)).hexdigest()
    return size, ""
