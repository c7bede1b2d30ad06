"""Stage `search` of one family: the strategy says which candidates come next; each is a unit."""

from collections.abc import Sequence
from typing import Any

from glue.evaluation.statistics import DIGITS, halving_error
from glue.pipeline.baselines import scored_candidate
from glue.pipeline.outcomes import Outcomes
from glue.plans.units import scoring_memory, unit
from glue.search.history import Measure, Observed, Strategy
from glue.search.replay import Ended, Generation, Known, replay
from glue.search.sampled import Facts
from glue.search.strategies import strategy_of
from glue.search.warm import usable
from glue.specs.expression import Candidate, expression_digest, parse_expression
from glue.specs.job import JobSpec
from glue.specs.plan import FinishedUnit, UnitOutcome, UnitPlan, UnitRequest
from glue.specs.results import HalvingResult, Rejected, ScoredCandidate, SearchResult, Trial
from glue.specs.search import DataFlow, Halving, SampledSearch

SCORE, MEASURE = "score.candidate", "similarity.measure"
SHARE = "share"


def advance(request: UnitRequest, spec: JobSpec) -> UnitOutcome:
    """Bring the strategy forward; insert what it needs next, or finish with its winner."""
    outcomes = Outcomes(request.outcomes)
    members = outcomes.similarity().family(request.family).members
    singles = [outcomes.baselines().of(name) for name in members]
    trials = [trial for trial in request.units if trial.kind == SCORE and SHARE not in trial.payload]
    parts = [trial for trial in request.units if trial.kind == SCORE and SHARE in trial.payload]
    halving = spec.search.halving
    step = replay(
        _strategy(spec, outcomes, members),
        [_observed(scored) for scored in singles],
        _recorded(request.advances),
        _known(singles, trials, parts, request.units),
        halving.keep if halving else None,
    )
    if isinstance(step, Ended):
        result = _result(request.family, step, trials, singles)
        saved = _halved(halving, step, parts) if halving else None
        return UnitOutcome(result.model_copy(update={"halving": saved}).as_json(), finished=True)
    proposed = [[candidate.as_json() for candidate in generation] for generation in step.proposed]
    share = halving.share if halving and step.on_a_part else None
    units = [_measure(step.measure)] if step.measure else _score_units(step.candidates, outcomes, share)
    return UnitOutcome({"proposed": proposed} | _notes(request, spec), units=tuple(units))


def _notes(request: UnitRequest, spec: JobSpec) -> dict[str, Any]:
    """What makes the search impossible to repeat, said once, when it begins."""
    if request.advances:
        return {}
    reasons = []
    if isinstance(spec.search, SampledSearch | DataFlow) and spec.search.budget.hours is not None:
        reasons.append("has a budget in hours, which the machine decides")
    if spec.warm_start is not None:
        reasons.append("starts from another job's candidates, which only this job's stored spec holds")
    return {"notes": {"degraded": f"the search of {request.family} {' and '.join(reasons)}"}} if reasons else {}


def _strategy(spec: JobSpec, outcomes: Outcomes, members: Sequence[str]) -> Strategy:
    earlier = usable(spec.warm_start.candidates, members) if spec.warm_start else ()
    return strategy_of(spec.search, Facts(outcomes.resolve().model(members[0]).layers, spec.seed), earlier)


def _recorded(advances: Sequence[dict[str, Any]]) -> list[Generation]:
    generations = [generation for result in advances for generation in result["proposed"]]
    return [tuple(Candidate.parse(candidate) for candidate in generation) for generation in generations]


def _known(
    singles: Sequence[ScoredCandidate],
    trials: Sequence[FinishedUnit],
    parts: Sequence[FinishedUnit],
    units: Sequence[FinishedUnit],
) -> Known:
    before = {expression_digest(single.expression): _observed(single) for single in singles}
    scored, screened = (
        {expression_digest(_candidate(each).expression): _observed_trial(each) for each in some}
        for some in (trials, parts)
    )
    return Known(before | scored, _similarities(units), screened, frozenset(before))


def _halved(halving: Halving, end: Ended, parts: Sequence[FinishedUnit]) -> HalvingResult:
    scores = {
        expression_digest(_candidate(part).expression): scored_candidate(part.result).score
        for part in parts
        if part.result
    }
    risks = [
        halving_error(scores[generation.kept[0]], [scores[digest] for digest in generation.dropped])
        for generation in end.screened
        if generation.dropped
    ]
    return HalvingResult(
        share=halving.share,
        screened=len(parts),
        dropped=sum(len(generation.dropped) for generation in end.screened),
        error=round(min(1.0, sum(risks)), DIGITS),
    )


def _similarities(units: Sequence[FinishedUnit]) -> dict[str, dict[str, float]]:
    measured = [unit.result for unit in units if unit.kind == MEASURE and unit.result]
    return {expression_digest(parse_expression(result["expression"])): result["values"] for result in measured}


def _score_units(candidates: Sequence[Candidate], outcomes: Outcomes, share: float | None) -> list[UnitPlan]:
    resolved = outcomes.resolve()
    where = {"suite": "proxy"} | ({SHARE: share} if share else {})
    return [
        unit(SCORE, candidate.as_json() | where, scoring_memory(resolved, candidate.expression))
        for candidate in candidates
    ]


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
            dropped=observed.dropped,
        )
        for number, generation in enumerate(end.generations)
        for position, observed in enumerate(generation)
    ]
    rejected = tuple(Rejected(name=name, reason=reason) for name, reason in end.winner.rejected)
    return SearchResult(family=family, winner=winner, rejected=rejected, trials=tuple(shown), ended=end.winner.reason)
