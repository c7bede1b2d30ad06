"""Searches over a parameter space: CMA-ES, random draws, a grid, the uniform soup."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from random import Random
from typing import Literal

from glue.search.cma_es import Told, default_population, next_points
from glue.search.data_flow import DataFlowSpace
from glue.search.greedy import UNSCORED
from glue.search.history import History, NextGeneration, Observed, Step, Strategy, Winner, by_falling_score, finish
from glue.search.space import PARAMETER_DIGITS, Point, SearchSpace
from glue.specs.expression import DATA_FLOW, Candidate, Merge, linear, members_of, weights_of
from glue.specs.search import Budget, Method

SECONDS_PER_HOUR = 3600

Space = SearchSpace | DataFlowSpace


@dataclass(frozen=True)
class Facts:
    """What a sampled search has to know of a family besides its history: its depth, and the job's seed."""

    layers: int
    seed: int


@dataclass(frozen=True)
class Sampled:
    """One method's search. `draw` gives the next points from those that were told, `size` at most that many at a
    time; `heuristic`, or an earlier job's candidates, runs first where the search starts from its result."""

    method: Method | Literal["data_flow"]
    kind: Literal["cma_es", "random"]
    parametrisation: Literal["simplex", "box"]
    groups: int
    budget: Budget
    population: int | None
    facts: Facts
    heuristic: Strategy | None = None
    repeats: int = 1

    def __call__(self, history: History) -> Step:
        """The next generation, or the winner when the budget is spent."""
        begun = self.begin(history)
        return self._generation(begun, history) if isinstance(begun, Sampling) else begun

    def begin(self, history: History) -> "Sampling | Step":
        """What a step is before any point is drawn, which costs a replay: the end, the heuristic's step, or where
        the sampling stands."""
        members = tuple(single.member for single in history.singles if single.mean is not None)
        centre: tuple[float, ...] | None = None
        used = 0
        if self.heuristic is not None:
            ended = finish(self.heuristic, history)
            if not isinstance(ended, tuple):
                return ended
            winner, used = ended
            members, centre = _start(winner)
        if len(members) < 2:
            return _winner(history, "there is nothing to merge")
        space = self._space(members, centre, history)
        reason = _spent(self.budget, history)
        return _winner(history, reason) if reason else Sampling(space, history.after(used))

    def _space(self, members: tuple[str, ...], centre: tuple[float, ...] | None, history: History) -> Space:
        if self.method == DATA_FLOW:
            ordered = tuple(single.member for single in by_falling_score(history.singles))
            return DataFlowSpace(ordered, self.facts.layers, self.repeats)
        return SearchSpace(members, self.method, self.parametrisation, self.groups, self.facts.layers, centre)

    def _generation(self, begun: "Sampling", history: History) -> NextGeneration:
        space, own = begun.space, begun.own
        told = [told for generation in own.generations for told in generation]
        size = self._size(space, told)
        left = self.budget.trials - sum(len(generation) for generation in history.generations)
        points = self._points(space, [(o.candidate.parameters, o.mean) for o in told], min(size, left), own)
        start = len(told)
        return NextGeneration(tuple(_candidate(space, start + index, point) for index, point in enumerate(points)))

    def _size(self, space: Space, told: Sequence[Observed]) -> int:
        if self.kind == "random":
            assert self.population is not None
            return self.population
        population = self._population(space)
        # CMA-ES learns from whole populations: a failed candidate is replaced by one more.
        return population - sum(observed.mean is not None for observed in told) % population

    def _population(self, space: Space) -> int:
        return self.population or max(default_population(len(space.dimensions)), 2)

    def _points(self, space: Space, told: list[Told], count: int, own: History) -> list[dict[str, float]]:
        if self.kind == "random":
            return [_random_point(space, self.facts.seed, len(told) + index) for index in range(count)]
        best = by_falling_score(own.singles)[0].mean
        assert best is not None
        return next_points(space.dimensions, told, count, self._population(space), self.facts.seed, best)


@dataclass(frozen=True)
class Sampling:
    """A search that goes on: its space, and the history without the heuristic's generations."""

    space: Space
    own: History


def uniform_soup(history: History) -> Step:
    """The mean of all members, scored once."""
    names = [single.member for single in history.singles if single.mean is not None]
    if len(names) < 2 or history.generations:
        return _winner(history, "")
    weights = dict.fromkeys(names, 1.0)
    return NextGeneration((Candidate(name=f"mean of {len(names)} members", expression=linear(weights)),))


def grid(steps: int, history: History) -> Step:
    """Every weighting in multiples of 1/steps that is no single model, in one generation."""
    names = [single.member for single in history.singles if single.mean is not None]
    if len(names) < 2 or history.generations:
        return _winner(history, "")
    points = [point for point in product(range(steps + 1), repeat=len(names)) if sum(point) == steps]
    weightings = [{name: part / steps for name, part in zip(names, point, strict=True)} for point in points]
    candidates = [_named(weights) for weights in weightings if max(weights.values()) < 1]
    return NextGeneration(tuple(candidates)) if candidates else _winner(history, "the grid has no merge")


@dataclass(frozen=True)
class InTurn:
    """Several searches one after the other, each with its share of the budget; the best candidate of all wins."""

    parts: tuple[Sampled, ...]

    def __call__(self, history: History) -> Step:
        """The running part's step, or the best of all when the last one has ended."""
        rest = history
        for part in self.parts:
            ended = finish(part.begin, rest)
            if not isinstance(ended, tuple):
                return part(rest)
            rest = rest.after(ended[1])
        return _winner(history, f"{len(self.parts)} methods had their share of the budget")


def in_turn(parts: Sequence[Sampled]) -> Sampled | InTurn:
    """The parts with equal shares of the budget; one part is itself."""
    if len(parts) == 1:
        return parts[0]
    return InTurn(
        tuple(replace(part, budget=_share(part.budget, len(parts), index)) for index, part in enumerate(parts))
    )


def _share(budget: Budget, parts: int, index: int) -> Budget:
    trials = budget.trials // parts + (index < budget.trials % parts)
    items = None if budget.items is None else max(1, budget.items // parts)
    hours = None if budget.hours is None else budget.hours / parts
    return budget.model_copy(update={"trials": max(1, trials), "items": items, "hours": hours})


def _spent(budget: Budget, history: History) -> str:
    trials = [observed for generation in history.generations for observed in generation]
    if len(trials) >= budget.trials:
        return f"the budget of {budget.trials} trials is spent"
    if budget.items is not None and sum(trial.items for trial in trials) >= budget.items:
        return f"the budget of {budget.items} items is spent"
    if budget.hours is not None and sum(trial.seconds for trial in trials) >= budget.hours * SECONDS_PER_HOUR:
        return f"the budget of {budget.hours:g} hours is spent"
    if budget.patience is not None and _idle_generations(history) >= budget.patience:
        return f"{budget.patience} generations brought nothing better"
    return ""


def _idle_generations(history: History) -> int:
    best = max(single.mean for single in history.singles if single.mean is not None)
    idle = 0
    for generation in history.generations:
        top = max((observed.mean for observed in generation if observed.mean is not None), default=best)
        idle = 0 if top > best else idle + 1
        best = max(best, top)
    return idle


def _winner(history: History, reason: str) -> Winner:
    trials = [observed for generation in history.generations for observed in generation]
    best = by_falling_score(history.singles)[0]
    accepted: list[Candidate] = []
    for trial in trials:
        assert best.mean is not None
        if trial.mean is not None and trial.mean > best.mean:
            best = trial
            accepted.append(trial.candidate)
    inside = members_of(best.candidate.expression)
    outside = [(single.member, _why_outside(single)) for single in history.singles if single.member not in inside]
    return Winner(best, tuple(outside), tuple(accepted), reason)


def _why_outside(single: Observed) -> str:
    return UNSCORED if single.mean is None else "the best candidate is without it"


def _start(winner: Winner) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    expression = winner.observed.candidate.expression
    if not isinstance(expression, Merge):
        return members_of(expression), None
    weights = {name: weight for name, weight in weights_of(expression).items() if weight > 0}
    return tuple(weights), tuple(weights.values())


def _candidate(space: Space, number: int, point: Point) -> Candidate:
    return Candidate(name=f"{space.method} {number + 1}", expression=space.expression(point), parameters=dict(point))


def _named(weights: dict[str, float]) -> Candidate:
    name = " + ".join(f"{weight:.4g} {member}" for member, weight in weights.items() if weight)
    return Candidate(name=name, expression=linear(weights))


def _random_point(space: Space, seed: int, number: int) -> dict[str, float]:
    # Keyed by the candidate's number, so that a draw does not depend on how many came before it.
    draw = Random(f"{seed} {space.method} {number}")  # noqa: S311  # a search, not a secret
    return {d.name: round(draw.uniform(d.low, d.high), PARAMETER_DIGITS) for d in space.dimensions}
