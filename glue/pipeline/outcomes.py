"""The results of a job's finished stages, read back as checked values."""

from collections.abc import Sequence

from glue.specs.errors import GlueError
from glue.specs.plan import StageOutcome
from glue.specs.results import (
    BaselinesResult,
    BuildResult,
    MergeResult,
    MixtureResult,
    ResolveResult,
    SearchResult,
    SimilarityResult,
)


class Outcomes:
    """Typed access to the outcomes that travel with a unit's request."""

    def __init__(self, outcomes: Sequence[StageOutcome]) -> None:
        self._known = {(outcome.name, outcome.family): outcome.result for outcome in outcomes}

    def resolve(self) -> ResolveResult:
        """What `resolve` found in every entry."""
        return ResolveResult.parse(self._of("resolve"))

    def similarity(self) -> SimilarityResult:
        """The matrices and the families."""
        return SimilarityResult.parse(self._of("similarity"))

    def baselines(self) -> BaselinesResult:
        """The members' proxy scores."""
        return BaselinesResult.parse(self._of("baselines"))

    def search(self, family: str) -> SearchResult:
        """The end of a family's search."""
        return SearchResult.parse(self._of("search", family))

    def merge(self, family: str) -> MergeResult:
        """A family's model on disk."""
        return MergeResult.parse(self._of("merge", family))

    def mixture(self) -> MixtureResult:
        """The mixture, or why there is none."""
        return MixtureResult.parse(self._of("mixture"))

    def build(self) -> BuildResult:
        """The model of a build."""
        return BuildResult.parse(self._of("build"))

    def build_report(self) -> BuildResult:
        """A build's model with its report."""
        return BuildResult.parse(self._of("report"))

    def searches(self) -> tuple[SearchResult, ...]:
        """Every family's search, in the order of the families."""
        return tuple(self.search(family.name) for family in self.similarity().families)

    def merges(self) -> tuple[MergeResult, ...]:
        """Every family's model, in the order of the families."""
        return tuple(self.merge(family.name) for family in self.similarity().families)

    def _of(self, name: str, family: str = "") -> dict[str, object]:
        if (name, family) not in self._known:
            raise GlueError(f"the stage {name} {family} has not finished")
        return self._known[name, family]
