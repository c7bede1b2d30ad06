"""Stage `baselines`: every member on the proxy suite, so that no search can end below the best of them."""

from glue.specs.job import JobSpec
from glue.specs.plan import UnitOutcome, UnitRequest
from glue.specs.results import BaselinesResult, ScoredCandidate


def advance(request: UnitRequest, spec: JobSpec) -> UnitOutcome:
    """Collect the scores in zoo order."""
    scores = tuple(scored_candidate(unit.result) for unit in request.units)
    return UnitOutcome(BaselinesResult(scores=scores).as_json(), finished=True)


def scored_candidate(result: dict[str, object] | None) -> ScoredCandidate:
    """The score in a unit's result, without what is about the run, such as its seconds."""
    assert result is not None
    return ScoredCandidate.parse({key: result[key] for key in ("name", "expression", "score")})
