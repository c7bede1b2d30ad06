"""Reading a folder of task YAML: plain data only, and nothing outside the folder. Knows nothing of lm-eval."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from glue.evaluation.task_schema import TaskFile, refusals
from glue.references.folders import files_below
from glue.specs.base import MAX_SPEC_BYTES
from glue.specs.errors import EvaluationError, InvalidInputError, Problem

DATA_FILES = "data_files"


class TaskFolder:
    """The tasks in the YAML files below a folder, by name."""

    def __init__(self, root: Path, data: Path | None = None, *, data_are_elsewhere: bool = False) -> None:
        """Index the folder. Data files lie beside their YAML, or in the folder `data`, or somewhere else altogether.

        Raises:
            EvaluationError: it is not a folder.
        """
        for given in (root, data or root):
            if not given.is_dir():
                raise EvaluationError(f"the task folder {given} does not exist; check include_path")
        self.root = root.resolve()
        self.data_are_elsewhere = data_are_elsewhere
        self._data_root = data.resolve() if data else None
        self._files: dict[str, list[Path]] = {}
        self._unread: list[Path] = []
        for path in files_below(self.root):
            if path.suffix == ".yaml":
                self._index(path)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str) -> TaskFile:
        """The task of that name, its includes merged in, its data files resolved against their own file's folder.

        Raises:
            EvaluationError: no file or several files define it, or its file says what no task file may say.
        """
        files = self._files.get(name, [])
        if len(files) > 1:
            places = ", ".join(self._show(path) for path in files)
            raise _refusal(name, "task_twice", f"defined in several files: {places}", "keep one of them")
        if not files:
            raise self._unknown(name)
        shown = self._show(files[0])
        config = self._merged(files[0], ())
        if problems := refusals(config):
            raise EvaluationError(f"task file {shown}: {'; '.join(each.detail for each in problems)}", problems)
        try:
            return TaskFile.parse(config)
        except InvalidInputError as error:
            raise EvaluationError(f"task file {shown}: {error.detail}", error.problems) from None

    def _index(self, path: Path) -> None:
        try:
            node = yaml.compose(_text(path), Loader=_PlainLoader)
        except (yaml.YAMLError, EvaluationError, RecursionError):
            self._unread.append(path)
            return
        for name in _scalars(node, "task"):
            self._files.setdefault(name, []).append(path)

    def _merged(self, path: Path, including: tuple[Path, ...]) -> dict[str, Any]:
        if path in including:
            raise _refusal(self._show(path), "include_cycle", "it includes itself", "remove the cycle")
        config = self._plain(path)
        includes = config.pop("include", [])
        merged: dict[str, Any] = {}
        for include in includes if isinstance(includes, list) else [includes]:
            target = self._inside(path, "include", include)
            merged |= self._merged(target, (*including, path))
        return merged | config

    def _plain(self, path: Path) -> dict[str, Any]:
        self._inside(path, "task", path.name)
        shown = self._show(path)
        try:
            config = yaml.load(_text(path), Loader=_PlainLoader)  # noqa: S506  (a safe loader)
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            fix = "write plain values: text, numbers, lists and mappings"
            raise _refusal(f"{shown}{line}", "not_plain_yaml", str(error.problem), fix) from None
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise _refusal(shown, "not_plain_yaml", str(error), "write plain YAML") from None
        if not isinstance(config, dict):
            raise _refusal(shown, "not_a_mapping", "it holds no mapping", "write keys and values")
        return self._with_data(path, config)

    def _with_data(self, path: Path, config: dict[str, Any]) -> dict[str, Any]:
        settings = config.get("dataset_kwargs")
        if not isinstance(settings, dict) or DATA_FILES not in settings:
            return config
        files = settings[DATA_FILES]
        # As in `datasets`: files without the name of a split are its split `train`.
        splits = files if isinstance(files, dict) else {"train": files}
        resolved = {
            str(split): [str(given)] if self.data_are_elsewhere else self._data(path, given)
            for split, given in splits.items()
        }
        return config | {"dataset_kwargs": settings | {DATA_FILES: resolved}}

    def _data(self, path: Path, given: Any) -> list[str]:
        files = given if isinstance(given, list) else [given]
        return [str(self._inside(path, f"dataset_kwargs/{DATA_FILES}", file)) for file in files]

    def _inside(self, path: Path, key: str, given: Any) -> Path:
        """The existing file that `path` names under `key`, with links followed; it lies inside the folder."""
        shown = self._show(path)
        if not isinstance(given, str) or not given:
            raise _refusal(shown, "not_a_path", f"{key} holds {given!r}, which is no path", "give a file", key)
        elsewhere = self._data_root if key.startswith("dataset_kwargs") else None
        base, root = (elsewhere, elsewhere) if elsewhere else (path.parent, self.root)
        try:
            target = (base / given).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise _refusal(shown, "not_a_path", f"{key}: {given!r}: {error}", "give a file", key) from None
        if not target.is_relative_to(root):
            fix = "move the file into the task folder: only what is inside is pinned with the job"
            raise _refusal(shown, "outside_folder", f"{key}: {given} lies outside the task folder", fix, key)
        if not target.is_file():
            fix = f"give a file relative to {shown}; patterns and addresses are not read"
            if elsewhere:
                fix = f"put it into {elsewhere}: a preset's data are not downloaded; see docs/evaluation.md"
            raise _refusal(shown, "no_file", f"{key}: there is no file {given}", fix, key)
        return target

    def _show(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name

    def _unknown(self, name: str) -> EvaluationError:
        nearest = get_close_matches(name, list(self._files), n=1, cutoff=0.5)
        known = ", ".join(sorted(self._files)[:10]) or "none"
        fix = f"did you mean '{nearest[0]}'?" if nearest else f"its tasks are: {known}"
        if self._unread:
            fix += f" (not readable as YAML: {', '.join(self._show(path) for path in self._unread[:5])})"
        return _refusal(name, "unknown_task", f"no .yaml file below {self.root} has it as its `task`", fix)


class _PlainLoader(yaml.SafeLoader):
    """Plain data: no tag constructs anything, and no alias unfolds to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # types-pyyaml leaves it out
            raise ComposerError(None, None, "aliases are not read; repeat the value", mark)
        return super().compose_node(parent, index)


def _refuse_tag(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    problem = f"the tag {node.tag} is refused: it asks for code or for a special object"
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_PlainLoader.add_constructor(None, _refuse_tag)


def _scalars(node: yaml.Node | None, key: str) -> Iterator[str]:
    """The text under `key` of a mapping that was composed, not constructed."""
    for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if name.value == key and isinstance(value, yaml.ScalarNode):
            yield value.value


def _text(path: Path) -> str:
    if not path.is_file():
        raise _refusal(path.name, "not_a_file", "it is not a regular file", "replace it by a file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SPEC_BYTES + 1)
    except OSError as error:
        raise _refusal(path.name, "unreadable", f"it cannot be read: {error.strerror}", "check its mode") from None
    if len(content) > MAX_SPEC_BYTES:
        fix = "keep items in data files"
        raise _refusal(path.name, "too_large", f"it is larger than {MAX_SPEC_BYTES // 1024} KiB", fix)
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise _refusal(path.name, "not_text", "it is not UTF-8 text", "save it as UTF-8") from None


def _refusal(subject: str, code: str, detail: str, fix: str, key: str = "") -> EvaluationError:
    pointer = f"/{key}" if key else ""
    return EvaluationError(f"task {subject}: {detail}; {fix}", [Problem(pointer, code, detail, fix)])
