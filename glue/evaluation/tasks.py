"""A user's task file as one of lm-eval's own task objects, with its templates in the sandbox."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from glue.evaluation.task_data import read_split
from glue.evaluation.task_files import TaskFolder
from glue.evaluation.task_schema import TaskFile
from glue.evaluation.templates import sandbox_templates
from glue.specs.errors import EvaluationError, GlueError


class LocalTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval ships no types
    """lm-eval's task over items that are already read: it opens no network connection and no cache."""

    def __init__(self, config: dict[str, Any], splits: dict[str, Dataset]) -> None:
        self._splits = splits
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Called by lm-eval where it would load the data set."""
        self.dataset = self._splits


def load_task(folder: TaskFolder, name: str, num_fewshot: int | None = None) -> LocalTask:
    """The task of that name; `num_fewshot` replaces the file's own.

    Raises:
        EvaluationError: the file, its data or its templates are wrong, or examples would give answers away.
    """
    file = folder.read(name)
    sandbox_templates()
    splits = {
        split: read_split(file.dataset_path, file.dataset_kwargs.data_files[split]) for split in file.used_splits()
    }
    config = file.config()
    config["num_fewshot"] = (file.num_fewshot or 0) if num_fewshot is None else num_fewshot
    if config["num_fewshot"]:
        _check_shots(file)
    with blamed_on(name):
        return LocalTask(config, splits)


@contextmanager
def blamed_on(task: str) -> Iterator[None]:
    """Whatever lm-eval raises in here comes from the task's templates, data or metrics, which are the user's.

    Raises:
        EvaluationError: instead of lm-eval's own error.
    """
    try:
        yield
    except GlueError:
        raise
    except Exception as error:
        detail = f"task {task}: {type(error).__name__}: {error}"
        raise EvaluationError(f"{detail}; look at its templates, its data and its metrics") from error


def _check_shots(file: TaskFile) -> None:
    """lm-eval keeps an item out of its own examples only where both come from the test split."""
    shots = file.fewshot_config.split if file.fewshot_config and file.fewshot_config.split else file.fewshot_split
    given = file.fewshot_config is not None and file.fewshot_config.samples is not None
    source = shots or (None if given else file.training_split)
    if source is None and not given:
        raise EvaluationError(
            f"task {file.task}: few-shot examples need a fewshot_split; name one other than the evaluated"
        )
    if source == file.evaluated_split and (shots is None or shots != file.test_split):
        raise EvaluationError(
            f"task {file.task}: its examples come from the evaluated split and would hold the answer; "
            "name another fewshot_split"
        )
