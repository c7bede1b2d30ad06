"""A user's YAML files into requests: paths in a file are meant from that file's own folder."""

from pathlib import Path
from typing import Any

from glue.builds.kinds import parse_config, with_models
from glue.references.hub_names import SCHEME, is_hub_source
from glue.specs.base import read_yaml
from glue.specs.build import BuildRequest
from glue.specs.kinds import parse_request
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
    """A job file, checked, with absolute paths. The config of a build may be the name of a file beside it.

    Raises:
        InvalidInputError: with a problem for each mistake.
    """
    data = with_absolute_paths(read_yaml(path), path.parent)
    request = parse_request(data)
    if isinstance(request, BuildRequest):
        parse_config(request.kind, request.config)
    return data


def with_absolute_paths(data: Any, folder: Path) -> dict[str, Any]:
    """A zoo's or a job's plain data, unchecked; paths in it that are relative are meant from `folder`."""
    mapping = _mapping(data)
    members = mapping.get("members")
    for entry in (mapping.get("base"), *(members if isinstance(members, list) else ())):
        if isinstance(entry, dict) and isinstance(entry.get("source"), str):
            entry["source"] = _absolute_source(entry["source"], folder)
    for suite in ("proxy", "report"):
        _make_absolute(mapping.get(suite), "include_path", folder)
    return _with_config(mapping, folder)


def _with_config(mapping: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The mapping with a build's config in it, read from its file where it is the name of one."""
    config = mapping.get("config")
    if isinstance(config, str):
        path = _absolute(config, folder)
        config, folder = read_yaml(path), path.parent
    if not isinstance(config, dict):
        return mapping
    changed = with_models(config, lambda pointer, text: _absolute_source(text, folder))
    router = changed.get("router")
    train = router.get("train") if isinstance(router, dict) else None
    if isinstance(train, dict) and "data" in train:
        given = [train["data"]] if isinstance(train["data"], str) else train["data"]
        train["data"] = [_absolute_text(each, folder) for each in given] if isinstance(given, list) else given
    return mapping | {"config": changed}


def _absolute_text(source: Any, folder: Path) -> Any:
    """A file of text, or a data set of the Hub, which only the scheme tells apart."""
    is_local = isinstance(source, str) and not source.startswith(SCHEME)
    return str(_absolute(source, folder)) if is_local else source


def _mapping(data: Any) -> dict[str, Any]:
    # What is not a mapping is told so by the spec's own validation.
    return data if isinstance(data, dict) else {"": data}


def _absolute_source(source: str, folder: Path) -> str:
    """A model, or `model+adapter`; what could also be a folder beside the file is that folder if it exists."""
    model, plus, adapter = source.rpartition("+")
    if model and plus and not _absolute(source, folder).exists():
        return f"{_absolute_source(model, folder)}+{_absolute_source(adapter, folder)}"
    if source.startswith(SCHEME) or (is_hub_source(source) and not (folder / source).exists()):
        return source
    return str(_absolute(source, folder))


def _make_absolute(entry: Any, key: str, folder: Path) -> None:
    if isinstance(entry, dict) and isinstance(entry.get(key), str):
        entry[key] = str(_absolute(entry[key], folder))


def _absolute(path: str, folder: Path) -> Path:
    return (folder / Path(path).expanduser()).resolve()
