"""Which files of a data set's repository hold which split, as the library `datasets` finds them. No script ever runs.

Knows file names and what the repository's card says; reads nothing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsspec.utils import glob_translate

from glue.specs.errors import InvalidInputError, Problem

KINDS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "tsv"}
_COMPRESSED = ".gz"

_SHARD = re.compile(r"(?:.*/)?data/(?P<split>\w+(?:\.\w+)*)-\d{5,}-of-\d{5,}[^/]*|(?P<name>\w+)-\d{5,}-of-\d{5,}[^/]*")
_CONVERTED = re.compile(r"(?P<split>[\w.-]+)/\d{4,}\.parquet")
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True)
class DataNeed:
    """What a task reads: a repository at a revision, one of its configurations, and some splits of it."""

    repo: str
    revision: str
    name: str | None
    splits: tuple[str, ...]
    folder: str | None = None
    files: Any = None


def kind_of(path: str) -> str | None:
    """How a data file is read, by its name: parquet, json, csv or tsv; none if it is no data file."""
    plain = path.removesuffix(_COMPRESSED)
    kind = next((kind for end, kind in KINDS.items() if plain.endswith(end)), None)
    return None if kind == "parquet" and plain != path else kind


def split_files(paths: Iterable[str], card: Mapping[str, Any], need: DataNeed) -> dict[str, tuple[str, ...]]:
    """The files of each split that is needed, in order.

    Raises:
        InvalidInputError: the repository has no such configuration or split, or no file that can be read.
    """
    data = sorted(path for path in paths if kind_of(path) and not _is_hidden(path))
    if not data:
        raise _refusal(need, *_without_files(paths))
    found = _of_patterns(data, need.files, need.folder) if need.files else _of_card(data, card, need)
    missing = [split for split in need.splits if not found.get(split)]
    if missing:
        known = ", ".join(sorted(split for split, files in found.items() if files)) or "none"
        raise _refusal(need, f"it has no split '{missing[0]}'; its splits are: {known}", "choose another revision")
    return {split: tuple(found[split]) for split in need.splits}


def _of_card(data: Sequence[str], card: Mapping[str, Any], need: DataNeed) -> dict[str, list[str]]:
    configurations = [each for each in card.get("configs") or () if isinstance(each, dict)]
    named = {str(each.get("config_name", "default")): each for each in configurations}
    if need.name in named or (need.name is None and named):
        chosen = named[need.name] if need.name else _default(named, need)
        folder = need.folder or chosen.get("data_dir")
        if chosen.get("data_files"):
            return _of_patterns(data, chosen["data_files"], folder)
        return _by_name(data, folder)
    if need.name is None or need.name == "default":
        return _by_name(data, need.folder)
    if any(path.startswith(f"{need.name}/") for path in data):
        # As the Hub's own branch of converted data lays out what a script once made.
        return _by_name(data, need.name)
    known = ", ".join(sorted(named)) or "none"
    fix = "set the task's revision to one that has it, such as refs/convert/parquet"
    raise _refusal(need, f"it has no configuration '{need.name}'; its configurations are: {known}", fix)


def _default(named: Mapping[str, dict[str, Any]], need: DataNeed) -> dict[str, Any]:
    marked = [each for each in named.values() if each.get("default")]
    chosen = marked[0] if marked else named.get("default") or (next(iter(named.values())) if len(named) == 1 else None)
    if chosen is None:
        raise _refusal(need, f"it has several configurations: {', '.join(sorted(named))}", "name a task with one")
    return chosen


def _of_patterns(data: Sequence[str], patterns: Any, folder: str | None) -> dict[str, list[str]]:
    given: dict[str, Any]
    if isinstance(patterns, list) and all(isinstance(each, dict) for each in patterns):
        given = {str(each.get("split", "train")): each.get("path") for each in patterns}
    else:
        given = patterns if isinstance(patterns, dict) else {"train": patterns}
    return {str(split): _matching(data, paths, folder) for split, paths in given.items()}


def _matching(data: Sequence[str], patterns: Any, folder: str | None) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns if isinstance(patterns, list) else [patterns]:
        whole = f"{folder.strip('/')}/{pattern}" if folder else str(pattern)
        expression = re.compile(glob_translate(whole.removeprefix("./")))
        found |= dict.fromkeys(path for path in data if path == whole or expression.fullmatch(path))
    return list(found)


def _by_name(data: Sequence[str], folder: str | None) -> dict[str, list[str]]:
    """Splits by the names of files and folders: shards first, then words for splits, then all as `train`."""
    start = f"{folder.strip('/')}/" if folder else ""
    inside = {path: path.removeprefix(start) for path in data if path.startswith(start)}
    for expression in (_CONVERTED, _SHARD):
        splits = {path: match for path, name in inside.items() if (match := expression.fullmatch(name))}
        if splits:
            return _grouped({path: next(filter(None, match.groups())) for path, match in splits.items()})
    words = {path: split for path, name in inside.items() if (split := _split_word(name))}
    return _grouped(words) if words else {"train": list(inside)}


def _split_word(name: str) -> str | None:
    # The folder counts before the file, as in `datasets`.
    *folders, file = name.split("/")
    for part in (*folders, file):
        for split, words in _KEYWORDS.items():
            if any(re.search(rf"(?:^|[-._ 0-9]){word}(?:[-._ 0-9]|$)", part) for word in words):
                return split
    return None


def _grouped(splits: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for path, split in splits.items():
        grouped.setdefault(split, []).append(path)
    return grouped


def _is_hidden(path: str) -> bool:
    names = path.split("/")
    return any(name.startswith((".", "__")) for name in names) or names[-1] in {"dataset_infos.json", "config.json"}


def _without_files(paths: Iterable[str]) -> tuple[str, str]:
    if any(path.endswith(".py") for path in paths):
        return (
            "its data are made by a script, and scripts never run",
            "set the task's revision to refs/convert/parquet, where the Hub keeps them as files",
        )
    return "it has no parquet, json or csv file", "choose another task, or export the data beside a local task"


def _refusal(need: DataNeed, detail: str, fix: str) -> InvalidInputError:
    whole = f"the data set {need.repo}@{need.revision}: {detail}"
    return InvalidInputError(f"{whole}; {fix}", [Problem("", "no_data", whole, fix)])
