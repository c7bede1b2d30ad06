"""Task folders: pinned to a commit, and scanned for the names of their tasks. Never runs what is in them."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from glue.references.findings import Findings
from glue.references.folders import files_below, folder_commit, resolve_folder
from glue.references.reading import read_bytes
from glue.specs.base import MAX_SPEC_BYTES
from glue.specs.errors import GlueError, IncompatibleModelsError, InvalidInputError, Problem
from glue.specs.suite import SuiteSpec

MAX_TASK_FILES = 5_000


def find_tasks(
    suite: SuiteSpec, pointer: str, roots: Sequence[Path], findings: Findings
) -> tuple[SuiteSpec, str | None]:
    """The suite with its real task folder, and that folder's commit; none where the suite names no folder."""
    if suite.include_path is None:
        return suite, None
    folder_pointer, subject = f"{pointer}/include_path", pointer.strip("/")
    commit = None
    with findings.at(folder_pointer, subject):
        folder = resolve_folder(suite.include_path, roots)
        commit = _commit(folder)
        suite = suite.model_copy(update={"include_path": str(folder)})
        names = task_names(folder)
        for number, task in enumerate(suite.tasks if names and not suite.suite else ()):
            if task.task not in names:
                findings.add(_unknown_task(task.task, names), f"{pointer}/tasks/{number}/task", subject)
    return suite, commit


def task_names(folder: Path) -> set[str]:
    """The names under `task:` in the YAML files below the folder. Files that are not YAML count as empty.

    Raises:
        InvalidInputError: there are more than 5,000 YAML files.
    """
    files = [path for path in files_below(folder) if path.suffix == ".yaml"]
    if len(files) > MAX_TASK_FILES:
        detail = f"{folder} holds more than {MAX_TASK_FILES} task files"
        raise InvalidInputError(detail, [Problem("", "too_many_files", detail, "give a smaller folder")])
    return {name for name in map(_task_name, files) if isinstance(name, str)}


def _commit(folder: Path) -> str:
    try:
        return folder_commit(folder)
    except IncompatibleModelsError as error:
        # The same findings, but here they are not about a model.
        raise InvalidInputError(error.detail, error.problems) from None


class _Loader(yaml.SafeLoader):
    """Plain data only; a tag that asks for anything else gives nothing."""


_Loader.add_multi_constructor("", lambda loader, suffix, node: None)


def _task_name(path: Path) -> Any:
    try:
        data = yaml.load(read_bytes(path, MAX_SPEC_BYTES), Loader=_Loader)  # noqa: S506  (a safe loader)
    except (yaml.YAMLError, GlueError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return data.get("task") if isinstance(data, dict) else None


def _unknown_task(name: str, names: Iterable[str]) -> InvalidInputError:
    known = sorted(names)
    nearest = get_close_matches(name, known, n=1, cutoff=0.5)
    fix = f"did you mean '{nearest[0]}'?" if nearest else f"its tasks are: {', '.join(known[:10])}"
    detail = f"the task folder has no task '{name}'"
    return InvalidInputError(detail, [Problem("", "unknown_task", detail, fix)])
