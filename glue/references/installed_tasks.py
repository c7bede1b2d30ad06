"""lm-eval's own tasks, read as files from the installed package: names, groups, configurations. Imports none of it.

What a user writes may hold no code; what the package brings may name its own functions (`!function`). They stay names
here, and only those are accepted that lie in the package and do not reach for the network.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from glue.specs.errors import InvalidInputError, Problem

# A key at the left margin with all lines that belong to it.
_BLOCK = re.compile(r"""^["']?(task|group|tag|include)["']?[ \t]*:([^\n]*(?:\n(?:[ \t#-][^\n]*|))*)""", re.MULTILINE)
_PLAIN_WORD = re.compile(r"""[ \t]*(["']?)([\w./:-]+)\1[ \t]*(?:#[^\n]*)?\n*""")

_GROUP_KEYS = {"group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag"}
_REFUSED = {
    "class": "it is a Python class of its own, not a configuration",
    "custom_dataset": "its items are made by a function that fetches them itself",
    "unsafe_code": "it runs programs of a model without a sandbox",
    "use_prompt": "its prompts come from another package",
    "doc_to_image": "models here read text",
    "doc_to_audio": "models here read text",
}
# What reaches the network or starts processes; of `datasets` that is what fetches.
_REACHING = {
    "evaluate", "requests", "urllib", "httpx", "aiohttp", "socket", "subprocess", "huggingface_hub", "unitxt",
}  # fmt: skip
_FETCHING_CALLS = {"load_dataset", "hf_hub_download", "snapshot_download", "exec", "eval", "system", "popen"}


@dataclass(frozen=True)
class PackageFunction:
    """A function of the package that a task names: the file that holds it, and its name in there."""

    file: Path
    name: str


@dataclass
class _Entry:
    """What is known of a name without reading its file as a whole."""

    file: Path | None = None
    is_group: bool = False
    tagged: list[str] = field(default_factory=list)


class InstalledTasks:
    """The tasks, groups and tags below a folder of the package."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._entries: dict[str, _Entry] = {}
        self._heads: dict[Path, Mapping[str, str]] = {}
        for file in sorted(self.root.rglob("*.yaml"), key=lambda path: path.as_posix()):
            self._index(file)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def nearest(self, name: str) -> str | None:
        """The name that was perhaps meant."""
        found = get_close_matches(name, list(self._entries), n=1, cutoff=0.6)
        return found[0] if found else None

    def expand(self, name: str) -> list[tuple[str, int | None]]:
        """The tasks that a name stands for, each once, with the number of examples that a group gives it, if any.

        Raises:
            InvalidInputError: a group changes its tasks in other ways.
        """
        found: dict[str, int | None] = {}
        for task, shots in self._expand(name, None, ()):
            found.setdefault(task, shots)
        return list(found.items())

    def read(self, name: str) -> dict[str, Any]:
        """A task's configuration, its includes merged in; functions are `PackageFunction`.

        Raises:
            InvalidInputError: it cannot be used here, with each reason.
        """
        file = self._entries[name].file
        assert file is not None, f"{name} is a tag"
        config = self._merged(file, ()) | {"task": name}
        if problems := list(_refusals(name, config, self.root)):
            raise InvalidInputError(f"task {name}: {problems[0].detail}; {problems[0].fix}", problems)
        return config

    def _index(self, file: Path) -> None:
        head = self._head(file)
        group, task = _word(head.get("group", "")), _word(head.get("task", ""))
        if group:
            entry = self._entries.setdefault(group, _Entry())
            entry.file, entry.is_group = entry.file or file, True
        elif task:
            entry = self._entries.setdefault(task, _Entry())
            entry.file = entry.file or file
            for tag in self._tags(file, ()):
                self._entries.setdefault(tag, _Entry()).tagged.append(task)

    def _head(self, file: Path) -> Mapping[str, str]:
        """The texts of the few keys by which a task is found: reading every file whole would take a minute."""
        if file not in self._heads:
            text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
            self._heads[file] = {match[1]: match[2] for match in _BLOCK.finditer(text)}
        return self._heads[file]

    def _tags(self, file: Path, including: tuple[Path, ...]) -> list[str]:
        head = self._head(file)
        if "tag" in head:
            return [str(tag) for tag in _listed(_plain(head["tag"]))]
        for include in reversed(_listed(_plain(head.get("include", "")))):
            target = file.parent / str(include)
            if target not in including and (tags := self._tags(target, (*including, target))):
                return tags
        return []

    def _expand(self, name: str, shots: int | None, above: tuple[str, ...]) -> Iterator[tuple[str, int | None]]:
        entry = self._entries.get(name)
        if entry is None or name in above:
            raise _refusal(name, "unknown_task", "a group names it, and lm-eval has no such task", "leave it out")
        if entry.file is not None and not entry.is_group:
            yield name, shots
            return
        if entry.file is None:
            yield from ((task, shots) for task in sorted(entry.tagged))
            return
        config = _load(entry.file, self.root)
        own = _overrides(name, {key: value for key, value in config.items() if key not in _GROUP_KEYS})
        for member in _listed(config.get("task")):
            changes = member if isinstance(member, dict) else {"task": member}
            given = _overrides(name, {key: value for key, value in changes.items() if key not in {"task", "group"}})
            if isinstance(changes.get("task"), list):
                raise _refusal(name, "group_in_group", "it defines a group inside", "name the tasks one by one")
            child = str(changes.get("task") or changes.get("group"))
            yield from self._expand(
                child, next((n for n in (shots, given, own) if n is not None), None), (*above, name)
            )

    def _merged(self, file: Path, including: tuple[Path, ...]) -> dict[str, Any]:
        config = _load(file, self.root)
        merged: dict[str, Any] = {}
        for include in _listed(config.pop("include", None)):
            target = (file.parent / str(include)).resolve()
            if target in including or not target.is_relative_to(self.root):
                raise _refusal(file.name, "bad_include", f"it includes {include}", "report it to lm-eval")
            merged |= self._merged(target, (*including, target))
        return merged | config


@cache
def installed_tasks() -> InstalledTasks | None:
    """lm-eval's own tasks, indexed once for the life of the process; none where lm-eval is not installed."""
    found = find_spec("lm_eval")
    places = list(found.submodule_search_locations or ()) if found else []
    return InstalledTasks(Path(places[0]) / "tasks") if places else None


def functions_in(value: Any) -> Iterator[PackageFunction]:
    """Every function that a configuration names, wherever it stands."""
    if isinstance(value, PackageFunction):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from functions_in(each)


def _refusals(name: str, config: Mapping[str, Any], root: Path) -> Iterator[Problem]:
    fix = "choose another task, or write it as a local YAML file with its data"
    for key, reason in _REFUSED.items():
        if config.get(key):
            yield Problem("", "task_refused", f"lm-eval's task {name} cannot be used: {reason}", fix)
            return
    settings = config.get("generation_kwargs") or {}
    if settings.get("do_sample") or float(settings.get("temperature") or 0) > 0 or config.get("repeats", 1) > 1:
        yield Problem("", "task_refused", f"lm-eval's task {name} samples its answers; answers here are greedy", fix)
    path = config.get("dataset_path")
    if not isinstance(path, str) or path.count("/") != 1:
        detail = f"lm-eval's task {name} has no repository of the Hub as its data set, but {path!r}"
        yield Problem("", "task_refused", detail, fix)
    # How a task makes one number of many items is not asked: a score is the mean of its items.
    used = {key: value for key, value in config.items() if key != "metric_list"}
    for function in functions_in(used):
        for reached in _reached(function.file, root, frozenset()):
            detail = f"lm-eval's task {name} cannot be used: {function.file.name} reaches beyond it ({reached})"
            yield Problem("", "task_refused", detail, fix)
            return


def _reached(file: Path, root: Path, seen: frozenset[Path]) -> Iterator[str]:
    """What a module of the package, or a module of it that it imports, reaches for besides its items."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for module in _imported(node):
            if module.partition(".")[0] in _REACHING:
                yield f"import {module}"
            inside = root.joinpath(*module.split(".")[2:]).with_suffix(".py")
            if module.startswith("lm_eval.tasks.") and inside.is_file() and inside not in seen:
                yield from _reached(inside, root, seen | {file, inside})
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in _FETCHING_CALLS:
                yield f"{called}()"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


def _overrides(group: str, changes: Mapping[str, Any]) -> int | None:
    if others := sorted(set(changes) - {"num_fewshot"}):
        detail = f"the group {group} changes {', '.join(others)} of its tasks"
        raise _refusal(group, "group_changes_tasks", detail, "name the tasks one by one")
    return changes.get("num_fewshot")


def _load(file: Path, root: Path) -> dict[str, Any]:
    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the faster where it is built
        """Plain data, and names of functions that lie below the package's tasks."""

    def function(loader: Any, node: yaml.ScalarNode) -> PackageFunction:
        module, _, name = str(node.value).rpartition(".")
        target = (file.parent / f"{module.replace('.', '/')}.py").resolve()
        if not target.is_relative_to(root) or not target.is_file():
            detail = f"{file.name} names the function {node.value}, which is not in the package's tasks"
            raise _refusal(file.stem, "foreign_function", detail, "choose another task")
        return PackageFunction(target, name)

    Loader.add_constructor("!function", function)
    try:
        config = yaml.load(file.read_bytes(), Loader=Loader)  # noqa: S506  (a safe loader)
    except (OSError, yaml.YAMLError) as error:
        raise _refusal(file.name, "unreadable", f"it cannot be read: {error}", "install lm-eval again") from None
    return config if isinstance(config, dict) else {}


def _word(text: str) -> str:
    """A plain scalar; nothing where there is a list or a mapping."""
    match = _PLAIN_WORD.fullmatch(text)
    value = match[2] if match else _plain(text)
    return value if isinstance(value, str) else ""


def _plain(text: str) -> Any:
    if not text.strip():
        return None
    try:
        found = yaml.load(f"value:{text}", Loader=_Nothing)  # noqa: S506  (a safe loader)
    except yaml.YAMLError:
        return None
    return found["value"]


class _Nothing(yaml.SafeLoader):
    """Plain data; a tag gives nothing."""


_Nothing.add_multi_constructor("", lambda loader, suffix, node: None)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _refusal(name: str, code: str, detail: str, fix: str) -> InvalidInputError:
    return InvalidInputError(f"task {name}: {detail}; {fix}", [Problem("", code, detail, fix)])
