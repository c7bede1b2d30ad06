"""A suite: the tasks, items, metrics and weights that a score is made of."""

from typing import Literal, Self

from pydantic import Field, model_validator

from glue.specs.base import Spec


class TaskSpec(Spec):
    """One lm-eval task. `limit` takes that many items, drawn with the suite's seed; none takes all."""

    task: str = Field(min_length=1, max_length=200)
    limit: int | None = Field(default=None, ge=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    metric: str | None = None
    weight: float = Field(default=1.0, gt=0)


class SuiteSpec(Spec):
    """Tasks and how they are scored.

    `threads` and `batch` are part of what a score means and never follow the machine.
    """

    include_path: str | None = None
    tasks: tuple[TaskSpec, ...] = Field(min_length=1, max_length=64)
    batch: int = Field(default=32, ge=1, le=4096)
    threads: int = Field(default=1, ge=1, le=256)
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _tasks_are_unique(self) -> Self:
        names = [task.task for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError("a task appears twice; give it once, with one limit and one weight")
        return self
