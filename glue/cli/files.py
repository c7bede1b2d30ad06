"""A user's YAML files into requests: paths in a file are meant from that file's own folder."""

from pathlib import Path
from typing import Any

from glue.references.hub_names import SCHEME, is_hub_source
from glue.specs.base import read_yaml
from glue.specs.job import JobRequest
from glue.specs.zoo import ZooSpec


def zoo_request(path: Path) -> dict[str, Any]:
    """A zoo file, checked, with absolute sources.

    Raises:
        InvalidInputError: with a problem for each mistake.
    """
    data = _mapping(read_yaml(path))
    entries = [data.get("base"), *(data.get("members") or ())]
    for entry in entries:
        if isinstance(entry, dict) and not _is_on_the_hub(entry.get("source"), path.parent):
            _make_absolute(entry, "source", path.parent)
    ZooSpec.parse(data)
    return data


def job_request(path: Path) -> dict[str, Any]:
    """A job file, checked, with absolute task folders.

    Raises:
        InvalidInputError: with a problem for each mistake.
    """
    data = _mapping(read_yaml(path))
    for suite in ("proxy", "report"):
        _make_absolute(data.get(suite), "include_path", path.parent)
    JobRequest.parse(data)
    return data


def _mapping(data: Any) -> dict[str, Any]:
    # What is not a mapping is told so by the spec's own validation.
    return data if isinstance(data, dict) else {"": data}


def _is_on_the_hub(source: Any, folder: Path) -> bool:
    """Whether a source means the Hub; one that could also be a folder beside the file is that folder if it exists."""
    if not isinstance(source, str) or not is_hub_source(source):
        return False
    return source.startswith(SCHEME) or not (folder / source).exists()


def _make_absolute(entry: Any, key: str, folder: Path) -> None:
    if isinstance(entry, dict) and isinstance(entry.get(key), str):
        entry[key] = str((folder / Path(entry[key]).expanduser()).resolve())
