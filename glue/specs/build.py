"""Jobs that build one model: a merge, a mixture or a stack, as the file of the command of that name says."""

from typing import Any, Literal

from pydantic import Field

from glue.specs.base import Name, Spec
from glue.specs.job import ResolvedModel
from glue.specs.publish import PublishSpec
from glue.specs.suite import SuiteSpec, TaskData

BuildKind = Literal["merge", "mixture", "stack"]
Check = Literal["stream", "load"]


class TrainingText(Spec):
    """A file of text that a mixture's routers learn from; `commit` is its sha256, or the commit of its data set."""

    path: str
    commit: str
    repo: str | None = None


class BuildRequest(Spec):
    """A job of one build. `config` is what `glue merge`, `glue mix` or `glue stack` reads from a file.

    `verify: load` also loads the result with transformers and runs it once; by default it is done before publishing.
    With `report` the result and every whole model that it was made of are scored on that suite.
    """

    kind: BuildKind
    config: dict[str, Any]
    name: Name | None = None
    labels: dict[str, str] = Field(default={}, max_length=16)
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    priority: int = Field(default=0, ge=-100, le=100)
    shard_bytes: int = Field(default=4_000_000_000, ge=1_000_000)
    verify: Check | None = None
    report: SuiteSpec | None = None
    publish: PublishSpec | None = None


class BuildJobSpec(Spec):
    """Its stored form: immutable, with every model resolved.

    `references` maps each model as the config writes it, `model` or `model+adapter`, to the name of its entry in
    `models`.
    """

    version: Literal[1] = 1
    kind: BuildKind
    seed: int
    config: dict[str, Any]
    models: tuple[ResolvedModel, ...]
    references: dict[str, Name]
    shard_bytes: int
    verify: Check
    report: SuiteSpec | None = None
    suite_commits: dict[str, str] = {}
    suite_data: dict[str, tuple[TaskData, ...]] = Field(default={}, exclude_if=lambda data: not data)
    texts: tuple[TrainingText, ...] = Field(default=(), exclude_if=lambda texts: not texts)
    publish: PublishSpec | None = None

    def suite(self, name: str) -> SuiteSpec:
        """The suite of that name; there is only `report`.

        Raises:
            KeyError: the job has no such suite.
        """
        if name != "report" or self.report is None:
            raise KeyError(name)
        return self.report

    def model(self, name: str) -> ResolvedModel:
        """The model of that name."""
        return next(model for model in self.models if model.name == name)

    def folders(self) -> dict[str, tuple[str, ...]]:
        """Model name to folder, and behind it the adapter's where there is one."""
        return {model.name: model.folders() for model in self.models}
