"""What stages leave behind, as values that are checked when they are read back."""

from pydantic import Field

from glue.specs.base import Spec
from glue.specs.expression import Expression


class InspectedModel(Spec):
    """What `resolve` found in one model's folder. Digests are sha256 in hexadecimal.

    `content` names the weights: it is the digest of config, tokenizer and tensor files by content.
    `signature` is equal for models that can be merged tensor by tensor; `tokenizer` for equal tokenizers.
    """

    name: str
    content: str
    signature: str
    tokenizer: str
    architecture: str
    dtype: str
    parameters: int
    hidden_size: int
    layers: int
    vocabulary: int
    tied: bool


class ResolveResult(Spec):
    """Every entry inspected; `groups` are the members with equal signatures, in zoo order."""

    models: tuple[InspectedModel, ...]
    groups: tuple[tuple[str, ...], ...]

    def contents(self) -> dict[str, str]:
        """Entry name to content digest."""
        return {model.name: model.content for model in self.models}

    def model(self, name: str) -> InspectedModel:
        """The entry of that name."""
        return next(model for model in self.models if model.name == name)


class SimilarityMatrix(Spec):
    """Similarities within one group: `values[i][j]` of `members[i]` and `members[j]`, symmetric, 1 on the diagonal."""

    members: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


class Family(Spec):
    """A cluster of members that can be merged and are alike."""

    name: str
    members: tuple[str, ...]


class SimilarityResult(Spec):
    """All matrices, and the families in the order of their first members; every member is in exactly one."""

    matrices: tuple[SimilarityMatrix, ...]
    families: tuple[Family, ...]

    def family(self, name: str) -> Family:
        """The family of that name."""
        return next(family for family in self.families if family.name == name)


class TaskScore(Spec):
    """A score on one task: `values` per item in the suite's order, their mean and its standard error, from 0 to 1."""

    task: str
    metric: str
    weight: float
    mean: float
    stderr: float
    values: tuple[float, ...]


class SuiteScore(Spec):
    """A score on a suite: the weighted mean of its tasks' means, rounded to six digits, and its standard error.

    `differing` is the share of items with another value where the same weights are computed in float32; it is there
    for the report suite, if that is scored in another dtype.
    """

    suite: str
    mean: float
    stderr: float
    tasks: tuple[TaskScore, ...]
    differing: float | None = Field(default=None, exclude_if=lambda share: share is None)


class ScoredCandidate(Spec):
    """A candidate and what it scored."""

    name: str
    expression: Expression
    score: SuiteScore


class BaselinesResult(Spec):
    """Every member on the proxy suite, in zoo order."""

    scores: tuple[ScoredCandidate, ...]

    def of(self, name: str) -> ScoredCandidate:
        """The score of the member of that name."""
        return next(scored for scored in self.scores if scored.name == name)


class Rejected(Spec):
    """A member that the search left out of a merge, or the mixture of its experts, and why."""

    name: str
    reason: str


class Trial(Spec):
    """One candidate of a search as the trace shows it; a failed one has no mean.

    One that was `dropped` was scored on a part of the items only, and ranks behind those that were kept.
    """

    generation: int
    position: int
    name: str
    mean: float | None
    accepted: bool
    dropped: bool = False


class HalvingResult(Spec):
    """What was saved by scoring on a part of the items first, and at which risk.

    `error` is at most the probability that any of the `dropped` candidates is better on all items than the best that
    was kept of its generation (Hoeffding's inequality, summed over all of them).
    """

    share: float
    screened: int
    dropped: int
    error: float


class SearchResult(Spec):
    """The winner of a family's search, with its trace; `ended` says why it ended, where that is not obvious."""

    family: str
    winner: ScoredCandidate
    rejected: tuple[Rejected, ...]
    trials: tuple[Trial, ...]
    ended: str = ""
    halving: HalvingResult | None = None


class MergeResult(Spec):
    """A family's model on disk; `location` is relative to the artifacts' root."""

    family: str
    name: str
    expression: Expression
    digest: str
    location: str


class Expert(Spec):
    """One expert of the mixture, with the number of proxy items on which it was the best, or of its prompts."""

    name: str
    family: str
    support: int


class MixtureResult(Spec):
    """The mixture on disk and its score on the proxy suite; all empty where there is only one expert.

    A `stock` one needs no modelling file of ours. `remarks` say what was found odd while it was built.
    """

    experts: tuple[Expert, ...]
    left_out: tuple[Rejected, ...]
    prototypes: str
    digest: str | None
    location: str | None
    score: SuiteScore | None
    stock: bool = Field(default=False, exclude_if=lambda stock: not stock)
    remarks: tuple[str, ...] = Field(default=(), exclude_if=lambda remarks: not remarks)


class ReportResult(Spec):
    """The finished artifact. `recommended` names the best model on the proxy suite."""

    digest: str
    location: str
    recommended: str
    best_single: str
    gain_over_best_single: float
    gain_over_best_single_stderr: float


class BuildResult(Spec):
    """The model of a build on disk; `remarks` are for whoever uses it. The gain is over the best of the models put in,
    where there is a report.
    """

    digest: str
    location: str
    parameters: int
    remarks: tuple[str, ...]
    best_single: str | None = None
    gain_over_best_single: float | None = None
    gain_over_best_single_stderr: float | None = None


class PublishedModel(Spec):
    """The commit on main of a repository that holds a finished artifact."""

    repo: str
    commit: str
    tag: str | None
    url: str
