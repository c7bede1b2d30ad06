"""One of lm-eval's own tasks as its task object, over data that lie on disk already.

Its functions are the package's, which is installed beside us and as trusted; nothing that a user wrote is run.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.registry import AGGREGATION_REGISTRY, metric_registry
from lm_eval.tasks._yaml_loader import _load_module_with_cache

from glue.evaluation.metrics import metric_named
from glue.evaluation.task_data import read_files
from glue.references.installed_tasks import InstalledTasks, PackageFunction, installed_tasks
from glue.references.task_data import evaluated_split, shots_of, shots_split
from glue.specs.errors import EvaluationError, InvalidInputError, Problem
from glue.specs.suite import TaskData

# What finds a task, and what would fetch its data.
_NOT_CONFIGURATION = ("tag", "group", "task_list", "dataset_kwargs", "dataset_name", "custom_dataset")
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


def installed_config(name: str, num_fewshot: int | None) -> dict[str, Any]:
    """The task's configuration with its functions, naming no other splits than those that are read.

    Raises:
        EvaluationError: there is no such task, or it cannot be used here.
    """
    try:
        config = _read(installed_tasks(), name)
        shots = shots_of(config, num_fewshot)
        source = shots_split(name, config, shots)
        evaluated = evaluated_split(name, config)
    except InvalidInputError as error:
        raise EvaluationError(error.detail, error.problems) from None
    kept = {key: value for key, value in config.items() if key not in _NOT_CONFIGURATION}
    for key in _SPLITS:
        if kept.get(key) not in {evaluated, source}:
            kept.pop(key, None)
    kept["metric_list"] = _metrics(name, config)
    ready: dict[str, Any] = _functions(kept) | {"num_fewshot": shots}
    if "process_docs" in ready:
        ready["process_docs"] = _once(ready["process_docs"])
    return ready


def hub_splits(name: str, data: Sequence[TaskData]) -> dict[str, Dataset]:
    """The items of each split of a task that was downloaded.

    Raises:
        EvaluationError: nothing was; or a file is not there, cannot be read or holds nothing.
    """
    if not data:
        fix = "submit the job to a service, which pins and downloads them, or set include_path to a folder with them"
        problem = Problem("/include_path", "no_data", f"the data of {name} come from the Hub and are not here", fix)
        raise EvaluationError(f"task {name}: {problem.detail}; {fix}", [problem])
    return {
        split: read_files([Path(each.folder) / path for path in paths])
        for each in data
        for split, paths in each.splits.items()
    }


def _once(process: Callable[[Dataset], Any]) -> Callable[[Dataset], Any]:
    """The function over a split, run once: lm-eval asks for the items again and again."""
    known: dict[int, tuple[Dataset, Any]] = {}

    @wraps(process)
    def processed(items: Dataset) -> Any:
        if id(items) not in known:
            known[id(items)] = (items, process(items))
        return known[id(items)][1]

    return processed


def _read(tasks: InstalledTasks | None, name: str) -> dict[str, Any]:
    if tasks is None or name not in tasks:
        fix = "set include_path to a folder with the task's YAML file and data"
        detail = f"lm-eval has no task '{name}'"
        raise InvalidInputError(f"{detail}; {fix}", [Problem("", "unknown_task", detail, fix)])
    return tasks.read(name)


def _metrics(name: str, config: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The metrics that lm-eval knows itself: for any other it would run a script from the Hub.

    Where the package names a function that makes one number of all items, the mean stands for it if each item's result
    is right or wrong, as in the tinyBenchmarks; other metrics of that kind are left out.
    """
    listed = config.get("metric_list")
    if listed is None:
        return None
    known = [_functions(dict(entry) | _mean(entry)) for entry in listed if _is_known(entry, config)]
    if not known:
        raise InvalidInputError(
            f"lm-eval's task {name} is judged by {', '.join(str(entry.get('metric')) for entry in listed)}, "
            "which is not lm-eval's own; choose another task"
        )
    return known


def _is_known(entry: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    metric = entry.get("metric")
    if entry.get("hf_evaluate") or (_is_joined_by_code(entry) and metric_named(str(metric)) is None):
        return False
    return isinstance(metric, PackageFunction) or bool(config.get("process_results")) or metric in metric_registry


def _mean(entry: Mapping[str, Any]) -> dict[str, str]:
    return {"aggregation": "mean"} if _is_joined_by_code(entry) else {}


def _is_joined_by_code(entry: Mapping[str, Any]) -> bool:
    aggregation = entry.get("aggregation")
    return aggregation is not None and not (isinstance(aggregation, str) and aggregation in AGGREGATION_REGISTRY)


def _functions(value: Any) -> Any:
    """The same configuration with the functions themselves in place of their names."""
    if isinstance(value, PackageFunction):
        return getattr(_load_module_with_cache(value.file), value.name)
    if isinstance(value, dict):
        return {key: _functions(each) for key, each in value.items()}
    return [_functions(each) for each in value] if isinstance(value, list) else value
