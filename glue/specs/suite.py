"""A suite: the tasks, items, metrics and weights that a score is made of."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from glue.specs.base import Spec

# A key that says nothing is not written down, so that specs without it stay what they were.
_absent: Callable[[Any], bool] = lambda value: not value  # noqa: E731  (pydantic takes a function)


class TaskSpec(Spec):
    """One lm-eval task: of the task folder, or else of lm-eval's own, which may also be a group or a tag.

    `limit` takes that many items, drawn with the suite's seed; `items` takes those at these places of the data,
    from 0; none of both takes all. `fixed_shots` gives every item the first examples instead of drawn ones.
    `metric` and `filter` name one of the task's; without them its first counts. `revision` is the branch, tag or
    commit of the data set on the Hub, which a job stores as a commit. A group becomes its tasks, which carry its name
    as `group` and share its `weight` by their numbers of items.
    """

    task: str = Field(min_length=1, max_length=200)
    limit: int | None = Field(default=None, ge=1)
    items: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=2, max_length=100_000)
    num_fewshot: int | None = Field(default=None, ge=0)
    fixed_shots: bool = False
    metric: str | None = None
    filter: str | None = None
    weight: float = Field(default=1.0, gt=0)
    revision: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$", exclude_if=_absent)
    group: str | None = Field(default=None, exclude_if=_absent)

    @model_validator(mode="after")
    def _items_are_named_once(self) -> Self:
        if self.items is not None and self.limit is not None:
            raise ValueError("give limit or items: either a number of drawn items or the items themselves")
        if self.items is not None and len(set(self.items)) != len(self.items):
            raise ValueError("items names an item twice")
        return self


PRESETS = {
    "paper_proxy": (
        "paper_tiny_mmlu",
        "paper_tiny_gsm8k",
        "paper_tiny_arc",
        "paper_tiny_winogrande",
        "paper_mbpp_validation",
        "paper_humanevalpack_js",
    ),
    "paper_report": (
        "paper_mmlu",
        "paper_gsm8k",
        "paper_arc",
        "paper_winogrande",
        "paper_mbpp",
        "paper_humaneval",
    ),
}


class SuiteSpec(Spec):
    """Tasks and how they are scored.

    `suite` takes the tasks of a preset, whose data files lie in `include_path` or else come from the Hub; `tasks` may
    then choose among them. A task may be written as its name alone.

    `threads` and `batch` are part of what a score means and never follow the machine. With `chat_template` the
    tokenizer's template renders every prompt, with the examples as turns of their own.
    """

    suite: Literal["paper_proxy", "paper_report"] | None = None
    include_path: str | None = None
    tasks: tuple[TaskSpec, ...] = Field(min_length=1, max_length=1024)
    batch: int = Field(default=32, ge=1, le=4096)
    threads: int = Field(default=1, ge=1, le=256)
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(default=0, ge=0, lt=2**32)
    chat_template: bool = False

    @property
    def leaves_out_the_proxy(self) -> bool:
        """Whether a report suite lacks the proxy's items: those of a preset from the Hub cannot be parted by hand."""
        return self.suite is not None and self.include_path is None

    @model_validator(mode="before")
    @classmethod
    def _preset_has_tasks(cls, data: Any) -> Any:
        if isinstance(data, dict) and "tasks" not in data and data.get("suite") in PRESETS:
            return data | {"tasks": [{"task": name} for name in PRESETS[data["suite"]]]}
        return data

    @model_validator(mode="before")
    @classmethod
    def _names_are_tasks(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("tasks"), list | tuple):
            return data | {"tasks": [{"task": task} if isinstance(task, str) else task for task in data["tasks"]]}
        return data

    @model_validator(mode="after")
    def _tasks_are_the_presets(self) -> Self:
        known = PRESETS[self.suite] if self.suite else ()
        unknown = [task.task for task in self.tasks if self.suite and (task.group or task.task) not in known]
        if unknown:
            raise ValueError(f"{self.suite} has no task {unknown[0]}; its tasks are: {', '.join(known)}")
        return self

    @model_validator(mode="after")
    def _tasks_are_unique(self) -> Self:
        names = [task.task for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError("a task appears twice; give it once, with one limit and one weight")
        return self


class TaskData(Spec):
    """Where a task's splits lie that come from the Hub: a repository at a commit, and paths below `folder`."""

    task: str
    repo: str
    commit: str
    folder: str
    splits: dict[str, tuple[str, ...]]
