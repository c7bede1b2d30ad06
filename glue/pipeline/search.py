"""Stage `search` of one family: the strategy says which candidates come next; each is a unit."""

from glue.pipeline.baselines import scored_candidate
from glue.pipeline.outcomes import Outcomes
from glue.plans.units import scoring_memory, unit
from glue.search.heuristic_coefficient import heuristic_coefficient
from glue.search.history import History, NextGeneration, Observed, Winner
from glue.specs.expression import Candidate
from glue.specs.job import JobSpec
from glue.specs.plan import ADVANCE, FinishedUnit, UnitOutcome, UnitRequest
from glue.specs.results import Rejected, ScoredCandidate, SearchResult, Trial


def advance(request: UnitRequest, spec: JobSpec) -> UnitOutcome:
    """Ask the strategy; insert its candidates, or finish with its winner."""
    outcomes = Outcomes(request.outcomes)
    members = outcomes.similarity().family(request.family).members
    baselines = outcomes.baselines()
    singles = tuple(_observed(baselines.of(name)) for name in members)
    trials = [trial for trial in request.units if trial.kind != ADVANCE]
    step = heuristic_coefficient(History(singles, _generations(trials)), spec.search.coefficients)
    if isinstance(step, NextGeneration):
        memory = scoring_memory(outcomes.resolve())
        payloads = [candidate.as_json() | {"suite": "proxy"} for candidate in step.candidates]
        return UnitOutcome(units=tuple(unit("score.candidate", payload, memory) for payload in payloads))
    scored = [baselines.of(name) for name in members] + [scored_candidate(t.result) for t in trials if t.result]
    return UnitOutcome(_result(request.family, step, trials, scored).as_json(), finished=True)


def _observed(scored: ScoredCandidate) -> Observed:
    return Observed(Candidate(name=scored.name, expression=scored.expression), scored.score.mean)


def _observed_trial(trial: FinishedUnit) -> Observed:
    candidate = Candidate.parse({key: trial.payload[key] for key in ("name", "expression")})
    return Observed(candidate, scored_candidate(trial.result).score.mean if trial.result else None)


def _generations(trials: list[FinishedUnit]) -> tuple[tuple[Observed, ...], ...]:
    numbers = sorted({trial.generation for trial in trials})
    return tuple(tuple(_observed_trial(trial) for trial in trials if trial.generation == number) for number in numbers)


def _result(family: str, end: Winner, trials: list[FinishedUnit], scored: list[ScoredCandidate]) -> SearchResult:
    winner = next(item for item in scored if item.expression == end.observed.candidate.expression)
    numbers = sorted({trial.generation for trial in trials})
    shown = [
        Trial(
            generation=numbers.index(trial.generation),
            position=trial.position,
            name=str(trial.payload["name"]),
            mean=_observed_trial(trial).mean,
            accepted=(numbers.index(trial.generation), trial.position) in end.accepted,
        )
        for trial in trials
    ]
    rejected = tuple(Rejected(name=name, reason=reason) for name, reason in end.rejected)
    return SearchResult(family=family, winner=winner, rejected=rejected, trials=tuple(shown))
