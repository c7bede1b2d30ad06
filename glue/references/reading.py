"""Bounded reads of files that somebody else wrote. Knows nothing of models."""

import json
import math
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from glue.specs.errors import IncompatibleModelsError, Problem

MAX_JSON_DEPTH = 64

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def refusal(code: str, detail: str, fix: str) -> IncompatibleModelsError:
    """The error for a folder that cannot be used; its one problem points at the reference as a whole."""
    return IncompatibleModelsError(f"{detail}; {fix}", [Problem("", code, detail, fix)])


def open_file(path: Path) -> BinaryIO:
    """The regular file, opened for reading in binary; the caller closes it.

    Raises:
        IncompatibleModelsError: the file cannot be opened or is not a regular one.
    """
    try:
        # O_NONBLOCK: opening a pipe that somebody left in the folder must not wait for its writer.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise unreadable(path, error) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise refusal("not_a_file", f"{path.name} is not a regular file", "replace it by a file")
    return file


def unreadable(path: Path, error: OSError) -> IncompatibleModelsError:
    """The error for a file that the system does not let us read."""
    return refusal("unreadable", f"{path.name} cannot be read: {error.strerror}", "check that it exists and its mode")


def read_bytes(path: Path, limit: int) -> bytes:
    """The whole file, at most `limit` bytes of it being allowed.

    Raises:
        IncompatibleModelsError: the file cannot be read, is not a regular file, or is larger.
    """
    with open_file(path) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise unreadable(path, error) from None
    if len(content) > limit:
        raise refusal("too_large", f"{path.name} is larger than {limit} bytes", "check that it is the right file")
    return content


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes, nested at most 64 levels deep.

    Raises:
        IncompatibleModelsError: as `read_bytes`, or it is not such an object.
    """
    return parse_json(read_bytes(path, limit), path.name)


def parse_json(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object in `content`; `name` is what the error calls it. Infinities and NaN come as text.

    Raises:
        IncompatibleModelsError: it is not JSON, not an object, repeats a key or is nested too deeply.
    """
    fix = "it is damaged or not what its name says; copy it again"
    try:
        text = content.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_without_doubles, parse_float=_finite, parse_constant=str)
        if _SURROGATE.search(text):
            # Half of a surrogate pair has no UTF-8 form: it could be neither stored nor digested.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise refusal("corrupt", f"{name} is not JSON: {reason}", fix) from None
    if not isinstance(value, dict):
        raise refusal("corrupt", f"{name} is not a JSON object", fix)
    if _deeper_than(value, MAX_JSON_DEPTH):
        raise refusal("corrupt", f"{name} is nested more than {MAX_JSON_DEPTH} levels deep", fix)
    return value


def _without_doubles(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"the key {key[:80]!r} appears twice")
        value[key] = item
    return value


def _finite(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [item for each in level for item in _children(each)]
        if not level:
            return False
    return True


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
