"""From a job's search spec to the strategy that it names."""

from functools import partial
from typing import Literal

from glue.search.greedy import greedy_soup, heuristic_average, heuristic_coefficient, heuristic_similarity
from glue.search.history import Strategy
from glue.search.sampled import Facts, Sampled, grid, in_turn, uniform_soup
from glue.search.warm import Earlier, Warmed
from glue.specs.expression import Candidate
from glue.specs.search import (
    DataFlow,
    Evolutionary,
    GreedySoup,
    GridSearch,
    HeuristicAverage,
    HeuristicCoefficient,
    HeuristicSimilarity,
    RandomSearch,
    SampledSearch,
    SearchSpec,
    UniformSoup,
)


def strategy_of(spec: SearchSpec, facts: Facts, earlier: tuple[Candidate, ...] = ()) -> Strategy:
    """The strategy with everything that it needs besides the history; it starts from `earlier` candidates if any."""
    if not earlier:
        return _cold(spec, facts)
    if isinstance(spec, Evolutionary):
        return in_turn(_sampled(spec, facts, "cma_es", spec.population, Earlier(earlier)))
    return Warmed(earlier, _cold(spec, facts))


def _cold(spec: SearchSpec, facts: Facts) -> Strategy:
    match spec:
        case HeuristicCoefficient():
            return heuristic_coefficient(spec.coefficients)
        case HeuristicAverage():
            return heuristic_average()
        case HeuristicSimilarity():
            return heuristic_similarity(spec.coefficients, spec.order)
        case UniformSoup():
            return uniform_soup
        case GreedySoup():
            return greedy_soup()
        case GridSearch():
            return partial(grid, spec.steps)
        case Evolutionary():
            return in_turn(_evolutionary(spec, facts))
        case DataFlow():
            parts = (spec.budget, spec.population, facts)
            return Sampled("data_flow", "cma_es", "simplex", 1, *parts, repeats=spec.repeats)
        case RandomSearch():
            return in_turn(_sampled(spec, facts, "random", spec.generation))


def _evolutionary(spec: Evolutionary, facts: Facts) -> list[Sampled]:
    heuristic = heuristic_coefficient(spec.coefficients) if spec.start == "heuristic" else None
    return _sampled(spec, facts, "cma_es", spec.population, heuristic)


def _sampled(
    spec: SampledSearch,
    facts: Facts,
    kind: Literal["cma_es", "random"],
    population: int | None,
    heuristic: Strategy | None = None,
) -> list[Sampled]:
    """One search for each method, all with the same settings."""
    return [
        Sampled(
            method=method,
            kind=kind,
            parametrisation=spec.parametrisation,
            groups=spec.layer_groups,
            budget=spec.budget,
            population=population,
            facts=facts,
            heuristic=heuristic,
        )
        for method in spec.methods
    ]
