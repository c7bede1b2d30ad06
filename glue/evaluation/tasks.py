"""A task as one of lm-eval's own task objects, over items that were read, with its templates in the sandbox."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from datasets import Dataset
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import apply_template

from glue.evaluation.installed import hub_splits, installed_config
from glue.evaluation.metrics import FIRST_TRY
from glue.evaluation.sandbox import check_sandbox, run_program
from glue.evaluation.task_data import read_split
from glue.evaluation.task_files import TaskFolder
from glue.evaluation.task_schema import CodeSettings, TaskFile
from glue.evaluation.templates import sandbox_templates
from glue.sandbox.programs import Limits
from glue.specs.errors import EvaluationError, GlueError
from glue.specs.suite import TaskData


class LocalTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval ships no types
    """lm-eval's task over items that are already read: it opens no network connection and no cache."""

    def __init__(
        self,
        config: dict[str, Any],
        splits: dict[str, Dataset],
        code: CodeSettings | None = None,
        identity: str | None = None,
    ) -> None:
        self._splits = splits
        self.code = code
        self._identity = identity
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Called by lm-eval where it would load the data set."""
        self.dataset = self._splits

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """lm-eval's results of one item; of a code task, whether the program passes."""
        if self.code is None:
            judged: dict[str, Any] = super().process_results(doc, results)
            return judged
        program = apply_template(self.code.program, {**doc, "answer": results[0]})
        verdict = run_program(self.code.language, program, Limits(seconds=self.code.seconds))
        return {FIRST_TRY: float(verdict.passed)}

    def question(self, doc: dict[str, Any]) -> Any:
        """What the item is known by, with its answer: its own text, whatever precedes it."""
        return apply_template(self._identity, doc) if self._identity is not None else self.doc_to_text(doc)

    def aggregation(self) -> dict[str, Any]:
        """The task's metrics with what makes one number of them."""
        offered: dict[str, Any] = super().aggregation()
        return offered if self.code is None else {FIRST_TRY: mean}


def load_installed(
    name: str, data: Sequence[TaskData], num_fewshot: int | None = None, *, fixed_shots: bool = False
) -> LocalTask:
    """lm-eval's own task of that name over the data that were downloaded for it.

    Raises:
        EvaluationError: there is no such task, it cannot be used here, or its data are not here.
    """
    sandbox_templates()
    with blamed_on(name):
        config = installed_config(name, num_fewshot)
        return LocalTask(_with_fixed_shots(config, fixed_shots), hub_splits(name, data))


def load_task(
    folder: TaskFolder,
    name: str,
    num_fewshot: int | None = None,
    data: Sequence[TaskData] = (),
    *,
    fixed_shots: bool = False,
) -> LocalTask:
    """The task of that name; `num_fewshot` replaces the file's own, `fixed_shots` takes the first examples.

    `data` are what a folder without data takes in place of its own files.

    Raises:
        EvaluationError: the file, its data or its templates are wrong, examples would give answers away, or the
            task runs programs and this machine has no sandbox.
    """
    file = folder.read(name)
    if file.code is not None:
        check_sandbox(file.code.language)
    sandbox_templates()
    splits = hub_splits(name, data) if folder.data_are_elsewhere else _local_splits(file)
    config = file.config()
    config["num_fewshot"] = (file.num_fewshot or 0) if num_fewshot is None else num_fewshot
    config = _with_fixed_shots(config, fixed_shots)
    if config["num_fewshot"]:
        _check_shots(file)
    with blamed_on(name):
        return LocalTask(config, splits, file.code, file.identity)


def _local_splits(file: TaskFile) -> dict[str, Dataset]:
    files = file.dataset_kwargs.data_files
    return {split: read_split(file.dataset_path, files[split]) for split in file.used_splits()}


def _with_fixed_shots(config: dict[str, Any], fixed: bool) -> dict[str, Any]:
    return config | {"fewshot_config": {**config.get("fewshot_config", {}), "sampler": "first_n"}} if fixed else config


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
