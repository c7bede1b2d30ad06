"""The tasks of a suite: folders and data sets pinned to a commit, names found, groups unfolded. Never runs any."""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from glue.references.data_files import DataNeed
from glue.references.findings import Findings
from glue.references.folders import files_below, folder_commit, resolve_folder
from glue.references.hub_datasets import DataSets
from glue.references.installed_tasks import InstalledTasks, installed_tasks
from glue.references.reading import read_bytes
from glue.references.task_data import PRESET_DATA, PRESET_GROUPS, need_of, shots_of
from glue.specs.base import MAX_SPEC_BYTES
from glue.specs.errors import GlueError, IncompatibleModelsError, InvalidInputError, Problem
from glue.specs.suite import SuiteSpec, TaskData, TaskSpec

MAX_TASK_FILES = 5_000


@dataclass(frozen=True)
class FoundSuite:
    """A suite whose tasks are single ones, its folder's commit if it has one, and the data that come from the Hub."""

    spec: SuiteSpec
    commit: str | None = None
    data: tuple[TaskData, ...] = ()


def find_tasks(
    suite: SuiteSpec, pointer: str, roots: Sequence[Path], findings: Findings, data: DataSets | None = None
) -> FoundSuite:
    """The suite with its real task folder, groups as their tasks, and data sets at a commit.

    A name is looked for in the task folder first, then among lm-eval's own tasks. Without `data` no data set of
    the Hub can be used.

    Raises:
        HubUnavailableError: the Hub does not answer.
    """
    subject, commit, names = pointer.strip("/"), None, set[str]()
    if suite.include_path is not None:
        with findings.at(f"{pointer}/include_path", subject):
            folder = resolve_folder(suite.include_path, roots)
            commit = _commit(folder)
            suite = suite.model_copy(update={"include_path": str(folder)})
            names = task_names(folder)
        if commit is None or not names or suite.suite:
            return FoundSuite(suite, commit)
    found = [
        each
        for number, task in enumerate(suite.tasks)
        for each in _found(suite, task, names, findings, f"{pointer}/tasks/{number}/task", subject, data)
    ]
    with findings.at(f"{pointer}/tasks", subject):
        _check_once([task for task, _ in found])
    tasks = tuple(task for task, _ in found)
    return FoundSuite(
        suite.model_copy(update={"tasks": tasks}), commit, tuple(each for _, needed in found for each in needed)
    )


def _found(
    suite: SuiteSpec,
    task: TaskSpec,
    names: Set[str],
    findings: Findings,
    pointer: str,
    subject: str,
    data: DataSets | None,
) -> list[tuple[TaskSpec, tuple[TaskData, ...]]]:
    """The tasks that one entry stands for, each with its data; none where something is wrong with it."""
    if task.task in names:
        return [(task, ())]
    with findings.at(pointer, subject):
        if suite.suite and task.task in PRESET_DATA:
            return [_preset(task, data)]
        name, shots = PRESET_GROUPS[task.task] if suite.suite else (task.task, None)
        tasks = installed_tasks()
        if tasks is None or name not in tasks:
            raise _unknown_task(name, names, tasks)
        members = tasks.expand(name)
        is_group = suite.suite is not None or [member for member, _ in members] != [name]
        given = (
            task if shots is None or task.num_fewshot is not None else task.model_copy(update={"num_fewshot": shots})
        )
        return [_installed(tasks, given, member, own, is_group, data) for member, own in members]
    return []


def _installed(
    tasks: InstalledTasks, task: TaskSpec, name: str, shots: int | None, is_group: bool, data: DataSets | None
) -> tuple[TaskSpec, tuple[TaskData, ...]]:
    config = tasks.read(name)
    asked = shots if task.num_fewshot is None else task.num_fewshot
    found = _find(data, name, need_of(name, config, shots_of(config, asked), task.revision))
    changes = {"task": name, "num_fewshot": asked, "revision": found.commit}
    group = {"group": task.group or task.task} if is_group else {}
    return task.model_copy(update=changes | group), (found,)


def _preset(task: TaskSpec, data: DataSets | None) -> tuple[TaskSpec, tuple[TaskData, ...]]:
    found = []
    for split, need in PRESET_DATA[task.task].items():
        there = _find(data, task.task, need)
        found.append(there.model_copy(update={"splits": {split: there.splits[need.splits[0]]}}))
    return task, tuple(found)


def _find(data: DataSets | None, task: str, need: DataNeed) -> TaskData:
    if data is None:
        detail = f"the data of {task} come from the Hub ({need.repo}), which cannot be used here"
        fix = "give a task folder with the data as include_path"
        raise InvalidInputError(f"{detail}; {fix}", [Problem("", "no_hub", detail, fix)])
    found = data.find(need)
    return TaskData(
        task=task, repo=found.repo, commit=found.commit, folder=str(found.folder), splits=dict(found.splits)
    )


def _check_once(tasks: Sequence[TaskSpec]) -> None:
    names = [task.task for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        detail = f"the task {twice[0]} appears twice, in a group and beside it or in two groups"
        raise InvalidInputError(detail, [Problem("", "task_twice", detail, "leave one of them out")])


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


def _unknown_task(name: str, names: Iterable[str], tasks: InstalledTasks | None) -> InvalidInputError:
    known = sorted(names)
    nearest = get_close_matches(name, known, n=1, cutoff=0.5)
    meant = nearest[0] if nearest else tasks.nearest(name) if tasks else None
    places = "the task folder has" if known else "lm-eval has" if tasks else "there is"
    detail = f"{places} no task '{name}'"
    fix = f"did you mean '{meant}'?" if meant else "set include_path to a folder with the task's YAML file"
    if known and not meant:
        fix = f"its tasks are: {', '.join(known[:10])}"
    if tasks is None:
        fix += "; lm-eval's own tasks are not installed where this service looks requests over"
    return InvalidInputError(detail, [Problem("", "unknown_task", detail, fix)])
