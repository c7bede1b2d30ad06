"""JSON values on their way into a row: what a column cannot hold is mended, what a list need not show is left out."""

from typing import Any

_SCALARS = (str, int, float, bool)
_LONGEST_TEXT = 200


def storable(value: Any) -> Any:
    """The value without the characters that Postgres refuses in JSON: NUL and lone surrogates.

    For texts that come from anywhere, such as messages of exceptions; recording a failure must not fail itself.
    """
    if isinstance(value, str):
        return str(value).replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {storable(key): storable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [storable(part) for part in value]
    return value


def summary_of(result: dict[str, Any]) -> dict[str, Any]:
    """The short scalars of a result, and those of the objects directly within it."""
    nested = {key: _scalars(value) for key, value in result.items() if isinstance(value, dict)}
    return _scalars(result) | {key: value for key, value in nested.items() if value}


def _scalars(value: dict[str, Any]) -> dict[str, Any]:
    return {key: part for key, part in value.items() if isinstance(part, _SCALARS) and len(str(part)) <= _LONGEST_TEXT}
