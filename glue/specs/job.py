"""A job: what a user submits, and the immutable, complete form in which it is stored."""

from typing import Literal, Self

from pydantic import Field, model_validator

from glue.specs.base import Name, Spec
from glue.specs.expression import Candidate
from glue.specs.publish import PublishSpec
from glue.specs.search import HeuristicCoefficient, SearchSpec
from glue.specs.suite import SuiteSpec, TaskData
from glue.specs.zoo import ZooSpec

SPEC_VERSION: Literal[1] = 1


class ClusteringSpec(Spec):
    """How families are formed: members whose similarity is above `threshold` belong together.

    Source: Model-GLUE (arXiv 2410.05357), appendix A.5; the paper compares with a family's first member
    (`leader`), complete linkage does not depend on the order.
    """

    threshold: float | None = Field(default=None, ge=-1, le=1)
    linkage: Literal["leader", "complete", "average"] = "complete"
    weights: Literal["raw", "task_vector"] = "raw"

    @model_validator(mode="before")
    @classmethod
    def _raw_threshold(cls, value: object) -> object:
        # The paper's 0.95 is about raw weights; task vectors have no such tradition, so the user must choose.
        if isinstance(value, dict) and value.get("threshold") is None and value.get("weights", "raw") == "raw":
            return {**value, "threshold": 0.95}
        return value

    @model_validator(mode="after")
    def _task_vectors_need_a_threshold(self) -> Self:
        if self.threshold is None:
            raise ValueError("clustering by task vectors has no default threshold; set one, for example 0.5")
        return self


class RouterSpec(Spec):
    """The mixture's router. A linear one is made of prototypes, an mlp learns whose sample is whose."""

    type: Literal["linear", "mlp"] = "linear"
    input: Literal["token", "sample"] = "sample"


class MixtureSpec(Spec):
    """How the families' results are put behind a router.

    At level `model` whole models are experts, at `block` the layers of models of one shape, at `ffn` their MLPs. The
    bottom `dense_layers` layers are shared: the base's, or without a base the mean of all experts. Level `ffn` routes
    each token unless told otherwise, and asks two experts.

    `minimum_share` is the share of proxy items on which an expert has to be the best to become one;
    below it a prototype would be noise. `include_rejected` adds members that the search rejected.
    """

    level: Literal["ffn", "block", "model"] = "model"
    top_k: int = Field(default=1, ge=1, le=64)
    dense_layers: int = Field(default=0, ge=0, exclude_if=lambda layers: layers == 0)
    router: RouterSpec = RouterSpec()
    minimum_share: float = Field(default=0.05, ge=0, le=1)
    include_rejected: bool = False

    @model_validator(mode="before")
    @classmethod
    def _as_its_level_is_used(cls, value: object) -> object:
        if not isinstance(value, dict) or value.get("level") != "ffn":
            return value
        router = value.get("router", {})
        routed = {"input": "token"} | router if isinstance(router, dict) else router
        return {"top_k": 2} | value | {"router": routed}

    @model_validator(mode="after")
    def _layers_route_samples(self) -> Self:
        if self.level != "ffn" and self.router.input == "token":
            raise ValueError(f"level {self.level} routes samples here; set router.input to sample or leave it out")
        return self

    @property
    def shares_layers(self) -> bool:
        """Whether experts have to be of one shape, because they share layers or parts of them."""
        return self.level != "model" or self.dense_layers > 0


class OutputSpec(Spec):
    """The form of saved models. Merges compute in fp32 whatever is stored."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    shard_bytes: int = Field(default=4_000_000_000, ge=1_000_000)


class JobRequest(Spec):
    """A job file as a user writes it: the zoo by name."""

    kind: Literal["model_glue"]
    zoo: Name
    name: Name | None = None
    labels: dict[str, str] = Field(default={}, max_length=16)
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    priority: int = Field(default=0, ge=-100, le=100)
    clustering: ClusteringSpec = Field(default_factory=lambda: ClusteringSpec.parse({}))
    search: SearchSpec = HeuristicCoefficient()
    mixture: MixtureSpec = MixtureSpec()
    output: OutputSpec = OutputSpec()
    proxy: SuiteSpec
    report: SuiteSpec
    publish: PublishSpec | None = None


class ResolvedAdapter(Spec):
    """The adapter of a zoo entry; see `ResolvedModel`."""

    path: str
    commit: str
    repo: str | None = None
    licence: str | None = None


class ResolvedModel(Spec):
    """A zoo entry after its reference was resolved: where it lies and the commit it is pinned to.

    Of a model on the Hub `repo` is its repository and `path` the folder that it is downloaded into. `licence`
    is what its card says, where it has one. Of an adapter all this is said of the model that it lies on, and
    of itself in `adapter`.
    """

    name: Name
    path: str
    commit: str
    repo: str | None = None
    licence: str | None = None
    adapter: ResolvedAdapter | None = None

    def folders(self) -> tuple[str, ...]:
        """The model's folder, and the adapter's where it has one."""
        return (self.path,) if self.adapter is None else (self.path, self.adapter.path)

    def repositories(self) -> tuple[tuple[str, str], ...]:
        """What has to come from the Hub: repositories, each with its commit."""
        parts = [(part.repo, part.commit) for part in (self, self.adapter) if part is not None]
        return tuple((repo, commit) for repo, commit in parts if repo is not None)


class WarmStart(Spec):
    """The best candidates of an earlier job, the best first, as they were when this one was submitted."""

    job: str
    candidates: tuple[Candidate, ...] = Field(min_length=1)


class JobSpec(Spec):
    """The stored spec: immutable, complete, resolved. Everything that decides the result is in it.

    `commit` of a local folder is the digest of its file names, sizes and small files; the content digest
    of the weights is found by the stage `resolve`. `suite_commits` does the same for task folders; `suite_data` says
    where the data of tasks from the Hub lie.
    """

    version: Literal[1] = SPEC_VERSION
    kind: Literal["model_glue"]
    seed: int
    zoo: ZooSpec
    models: tuple[ResolvedModel, ...]
    clustering: ClusteringSpec
    search: SearchSpec
    mixture: MixtureSpec
    output: OutputSpec
    proxy: SuiteSpec
    report: SuiteSpec
    suite_commits: dict[str, str] = {}
    suite_data: dict[str, tuple[TaskData, ...]] = Field(default={}, exclude_if=lambda data: not data)
    publish: PublishSpec | None = None
    warm_start: WarmStart | None = None

    def suite(self, name: str) -> SuiteSpec:
        """The suite of that name, `proxy` or `report`."""
        return {"proxy": self.proxy, "report": self.report}[name]

    def paths(self) -> dict[str, str]:
        """Entry name to folder; of an adapter that of the model that it lies on, whose config and tokenizer it has."""
        return {model.name: model.path for model in self.models}

    def folders(self) -> dict[str, tuple[str, ...]]:
        """Entry name to folder, and behind it the adapter's where there is one."""
        return {model.name: model.folders() for model in self.models}

    def sources(self) -> dict[str, str]:
        """Entry name to folder, with the adapter's as merge files write it: `model+adapter`."""
        return {name: "+".join(folders) for name, folders in self.folders().items()}
