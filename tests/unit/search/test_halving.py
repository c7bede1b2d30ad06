"""Halving: all on a part of the items, the best on all; the history never changes behind a strategy's back."""

from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from glue.search.halving import Missing, Screened, halve
from glue.search.history import History, NextGeneration, Observed, Step, Winner
from glue.search.replay import Ended, Known, Pending, replay
from glue.search.sampled import Facts
from glue.search.strategies import strategy_of
from glue.specs.expression import Candidate, Expression, expression_digest, linear, weights_of
from glue.specs.search import Evolutionary
from tests.support.searches import single

SINGLES = (single("a", 0.4), single("b", 0.3))


def candidate(weight: float) -> Candidate:
    return Candidate(name=f"{weight:g} a", expression=linear({"a": weight, "b": 1 - weight}))


def digest(each: Candidate) -> str:
    return expression_digest(each.expression)


def scored(*pairs: tuple[Candidate, float | None], items: int = 10) -> dict[str, Observed]:
    return {digest(each): Observed(each, mean, 1.0, items) for each, mean in pairs}


FOUR = tuple(candidate(weight) for weight in (0.2, 0.4, 0.6, 0.8))
PART = scored(*zip(FOUR, (0.3, 0.9, 0.5, 0.7), strict=True), items=2)


def test_all_are_scored_on_a_part_then_the_best_on_all() -> None:
    assert halve(FOUR, {}, {}, frozenset(), 0.5) == Missing(FOUR, on_a_part=True)
    assert halve(FOUR, PART, {}, frozenset(), 0.5) == Missing((FOUR[1], FOUR[3]), on_a_part=False)
    seen = halve(FOUR, PART, scored((FOUR[1], 0.6), (FOUR[3], 0.65)), frozenset(), 0.5)
    assert not isinstance(seen, Missing)
    observed, screened = seen
    # Those that were dropped rank by their part, strictly behind the worst that was kept.
    assert [each.mean for each in observed] == [0.3, 0.6, 0.5, 0.65]
    assert [each.dropped for each in observed] == [True, False, True, False]
    assert [each.items for each in observed] == [2, 12, 2, 12]
    assert screened == Screened((digest(FOUR[1]), digest(FOUR[3])), (digest(FOUR[2]), digest(FOUR[0])))


def test_a_dropped_candidate_never_ranks_before_a_kept_one() -> None:
    seen = halve(FOUR, PART, scored((FOUR[1], 0.1), (FOUR[3], 0.2)), frozenset(), 0.5)
    assert not isinstance(seen, Missing)
    assert [each.mean for each in seen[0]] == [0.099999, 0.1, 0.099999, 0.2]


def test_a_failure_on_a_part_is_a_failed_trial_and_when_all_kept_fail_nothing_is_ranked() -> None:
    failed = {**PART, **scored((FOUR[0], None))}
    seen = halve(FOUR, failed, scored((FOUR[1], None)), frozenset(), 0.25)
    assert not isinstance(seen, Missing)
    assert [each.mean for each in seen[0]] == [None] * 4
    assert digest(FOUR[0]) not in (*seen[1].kept, *seen[1].dropped)


def test_what_was_scored_on_all_before_is_no_part_of_the_contest() -> None:
    seen = halve(FOUR, PART, scored((FOUR[0], 0.95), (FOUR[1], 0.6)), frozenset([digest(FOUR[0])]), 0.25)
    assert not isinstance(seen, Missing)
    assert [each.mean for each in seen[0]] == [0.95, 0.6, 0.5, 0.599999]
    assert seen[1].kept == (digest(FOUR[1]),)


def comes_back(history: History) -> Step:
    """The one that was dropped comes again, alone, and is then scored on all items."""
    steps = (FOUR, (FOUR[2],), (FOUR[2], FOUR[3]))
    if len(history.generations) < len(steps):
        return NextGeneration(steps[len(history.generations)])
    return Winner(history.singles[0], (), ())


class Halved:
    """A search that halves, run as the stage runs it; `order` is the seed of the order in which scores arrive."""

    def __init__(self, strategy: object, part: object, whole: object, keep: float, order: int = 0) -> None:
        self.strategy, self.part, self.whole, self.keep = strategy, part, whole, keep
        self.random = Random(order)
        self.recorded: list[tuple[Candidate, ...]] = []
        singles = {digest(each.candidate): each for each in SINGLES}
        self.known = Known(dict(singles), {}, {}, frozenset(singles))
        self.executions: list[tuple[bool, str]] = []

    def step(self) -> Pending | Ended:
        return replay(self.strategy, SINGLES, self.recorded, self.known, self.keep)  # type: ignore[arg-type]

    def run(self) -> Ended:
        while isinstance(step := self.step(), Pending):
            self.recorded += step.proposed
            into = self.known.screened if step.on_a_part else self.known.scored
            score = self.part if step.on_a_part else self.whole
            for each in self.random.sample(step.candidates, len(step.candidates)):
                self.executions.append((step.on_a_part, digest(each)))
                into[digest(each)] = Observed(each, score(each.expression), 1.0, 10)  # type: ignore[index,operator]
        return step


def test_a_score_that_comes_later_does_not_change_the_generations_before() -> None:
    part = {digest(each): mean for each, mean in zip(FOUR, (0.3, 0.9, 0.5, 0.7), strict=True)}
    search = Halved(comes_back, lambda e: part[expression_digest(e)], lambda e: 0.8, keep=0.25)
    ended = search.run()
    means = [[each.mean for each in generation] for generation in ended.generations]
    assert means == [[0.3, 0.8, 0.5, 0.7], [0.8], [0.8, 0.8]]
    assert len(search.executions) == len(set(search.executions)) == 4 + 3
    assert search.step() == ended


def noisy(expression: Expression) -> float:
    return round(quality(expression) + Random(expression_digest(expression)).uniform(-0.05, 0.05), 6)


def quality(expression: Expression) -> float:
    return round(1 - (weights_of(expression).get("a", 0.0) - 0.7) ** 2, 6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(0, 99), st.sampled_from([0.1, 0.25, 0.6]))
def test_the_order_of_arrival_does_not_matter_and_nothing_is_scored_twice(one: int, other: int, keep: float) -> None:
    spec = Evolutionary.parse({"strategy": "evolutionary", "population": 6, "budget": {"trials": 24}})
    runs = [Halved(strategy_of(spec, Facts(4, 1)), noisy, quality, keep, order) for order in (one, other)]
    first, second = (run.run() for run in runs)
    assert first == second
    assert len(runs[0].executions) == len(set(runs[0].executions))
    assert not first.winner.observed.dropped
    full = [each for generation in first.generations for each in generation if not each.dropped]
    assert first.winner.observed.mean == max(each.mean for each in (*full, *SINGLES) if each.mean is not None)
    # A replay from the records alone says the same.
    assert runs[0].step() == replace(first)
