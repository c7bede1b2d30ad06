"""Stage `search` of one family: the strategy says which candidates come next; each is a unit."""

from collections.abc import Sequence
from typing import Any

from glue.pipeline.baselines import scored_candidate
from glue.pipeline.outcomes import Outcomes
from glue.plans.units import scoring_memory, unit
from glue.search.history import Measure, Observed, Strategy
from glue.search.replay import Ended, Generation, Known, replay
from glue.search.sampled import Facts
from glue.search.strategies import strategy_of
from glue.specs.expression import Candidate, expression_digest, parse_expression
from glue.specs.job import JobSpec
from glue.specs.plan import FinishedUnit, UnitOutcome, UnitPlan, UnitRequest
from glue.specs.results import Rejected, ScoredCandidate, SearchResult, Trial
from glue.specs.search import SampledSearch

SCORE, MEASURE = "score.candidate", "similarity.measure"


def advance(request: UnitRequest, spec: JobSpec) -> UnitOutcome:
    """Bring the strategy forward; insert what it needs next, or finish with its winner."""
    outcomes = Outcomes(request.outcomes)
    members = outcomes.similarity().family(request.family).members
    singles = [outcomes.baselines().of(name) for name in members]
    trials = [trial for trial in request.units if trial.kind == SCORE]
    step = replay(
        _strategy(spec, outcomes, members),
        [_observed(scored) for scored in singles],
        _recorded(request.advances),
        Known(_scored(singles, trials), _similarities(request.units)),
    )
    if isinstance(step, Ended):
        return UnitOutcome(_result(request.family, step, trials, singles).as_json(), finished=True)
    proposed = [[candidate.as_json() for candidate in generation] for generation in step.proposed]
    units = [_measure(step.measure)] if step.measure else _score_units(step.candidates, outcomes)
    return UnitOutcome({"proposed": proposed} | _notes(request, spec), units=tuple(units))


def _notes(request: UnitRequest, spec: JobSpec) -> dict[str, Any]:
    """What makes the search impossible to repeat, said once, when it begins."""
    timed = isinstance(spec.search, SampledSearch) and spec.search.budget.hours is not None
    if request.advances or not timed:
        return {}
    return {"notes": {"degraded": f"the search of {request.family} has a budget in hours, which the machine decides"}}


def _strategy(spec: JobSpec, outcomes: Outcomes, members: Sequence[str]) -> Strategy:
    return strategy_of(spec.search, Facts(outcomes.resolve().model(members[0]).layers, spec.seed))


def _recorded(advances: Sequence[dict[str, Any]]) -> list[Generation]:
    generations = [generation for result in advances for generation in result["proposed"]]
    return [tuple(Candidate.parse(candidate) for candidate in generation) for generation in generations]


def _scored(singles: Sequence[ScoredCandidate], trials: Sequence[FinishedUnit]) -> dict[str, Observed]:
    known = {expression_digest(single.expression): _observed(single) for single in singles}
    return known | {expression_digest(_candidate(trial).expression): _observed_trial(trial) for trial in trials}


def _similarities(units: Sequence[FinishedUnit]) -> dict[str, dict[str, float]]:
    measured = [unit.result for unit in units if unit.kind == MEASURE and unit.result]
    return {expression_digest(parse_expression(result["expression"])): result["values"] for result in measured}


def _score_units(candidates: Sequence[Candidate], outcomes: Outcomes) -> list[UnitPlan]:
    memory = scoring_memory(outcomes.resolve())
    return [unit(SCORE, candidate.as_json() | {"suite": "proxy"}, memory) for candidate in candidates]


def _measure(measure: Measure) -> UnitPlan:
    return unit(MEASURE, {"expression": measure.expression.as_json(), "members": list(measure.members)})


def _observed(scored: ScoredCandidate) -> Observed:
    return Observed(Candidate(name=scored.name, expression=scored.expression), scored.score.mean)


def _candidate(trial: FinishedUnit) -> Candidate:
    return Candidate.parse({key: trial.payload[key] for key in ("name", "expression", "parameters")})


def _observed_trial(trial: FinishedUnit) -> Observed:
    if trial.result is None:
        return Observed(_candidate(trial), None)
    score = scored_candidate(trial.result).score
    seconds = sum(trial.result.get(key, 0.0) for key in ("merge_seconds", "score_seconds"))
    return Observed(_candidate(trial), score.mean, seconds, sum(len(task.values) for task in score.tasks))


def _result(
    family: str, end: Ended, trials: Sequence[FinishedUnit], singles: Sequence[ScoredCandidate]
) -> SearchResult:
    scored = [*singles, *(scored_candidate(trial.result) for trial in trials if trial.result)]
    winner = next(item for item in scored if item.expression == end.winner.observed.candidate.expression)
    accepted = {candidate.name for candidate in end.winner.accepted}
    shown = [
        Trial(
            generation=number,
            position=position,
            name=observed.candidate.name,
            mean=observed.mean,
            accepted=observed.candidate.name in accepted,
        )
        for number, generation in enumerate(end.generations)
        for position, observed in enumerate(generation)
    ]
    rejected = tuple(Rejected(name=name, reason=reason) for name, reason in end.winner.rejected)
    return SearchResult(family=family, winner=winner, rejected=rejected, trials=tuple(shown), ended=end.winner.reason)
