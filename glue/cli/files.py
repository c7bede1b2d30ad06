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
    data = with_absolute_paths(read_yaml(path), path.parent)
    ZooSpec.parse(data)
    return data


def job_request(path: Path) -> dict[str, Any]:
    """A job file, checked, with absolute task folders.

    Raises:
        InvalidInputError: with a problem for each mistake.
    """
    data = with_absolute_paths(read_yaml(path), path.parent)
    JobRequest.parse(data)
    return data


def with_absolute_paths(data: Any, folder: Path) -> dict[str, Any]:
    """A zoo's or a job's plain data, unchecked; paths in it that are relative are meant from `folder`."""
    mapping = _mapping(data)
    members = mapping.get("members")
    for entry in (mapping.get("base"), *(members if isinstance(members, list) else ())):
        if isinstance(entry, dict) and not _is_on_the_hub(entry.get("source"), folder):
            _make_absolute(entry, "source", folder)
    for suite in ("proxy", "report"):
        _make_absolute(mapping.get(suite), "include_path", folder)
    return mapping


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
