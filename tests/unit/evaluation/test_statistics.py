import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glue.evaluation.statistics import Estimate, estimate, halving_error, paired_difference, weighted
from glue.specs.results import SuiteScore, TaskScore

outcomes = st.lists(st.floats(0, 1), min_size=2, max_size=40)


def score(suite: str, *tasks: tuple[float, list[float]]) -> SuiteScore:
    parts = tuple(
        TaskScore(task=str(number), metric="acc", weight=weight, mean=0, stderr=0, values=tuple(values))
        for number, (weight, values) in enumerate(tasks)
    )
    return SuiteScore(suite=suite, mean=0, stderr=0, tasks=parts)


def test_the_estimate_of_a_hand_worked_example() -> None:
    assert estimate([1, 0, 1, 0]) == pytest.approx(Estimate(0.5, math.sqrt(1 / 3) / 2))


@given(outcomes)
def test_the_estimate_is_the_textbooks(values: list[float]) -> None:
    found = estimate(values)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.stderr == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-9)


def test_one_value_has_no_standard_error() -> None:
    with pytest.raises(ValueError, match="at least two values"):
        estimate([1.0])


def test_weights_move_the_mean_and_the_error() -> None:
    found = weighted([Estimate(1.0, 0.3), Estimate(0.0, 0.4)], [3, 1])
    assert found == pytest.approx(Estimate(0.75, math.hypot(0.9, 0.4) / 4))


@given(outcomes, st.floats(0.1, 10))
def test_a_score_does_not_differ_from_itself(values: list[float], weight: float) -> None:
    same = score("s", (weight, values))
    assert paired_difference(same, same) == Estimate(0, 0)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=20))
def test_the_difference_changes_its_sign_with_the_order(pairs: list[tuple[float, float]]) -> None:
    first, second = (score("s", (1, list(column))) for column in zip(*pairs, strict=True))
    forward, backward = paired_difference(first, second), paired_difference(second, first)
    assert forward.mean == pytest.approx(-backward.mean)
    assert forward.stderr == pytest.approx(backward.stderr)


def test_a_constant_advantage_is_certain() -> None:
    first = score("s", (1, [1.0, 0.5, 0.75]), (2, [1.0, 1.0]))
    second = score("s", (1, [0.75, 0.25, 0.5]), (2, [0.75, 0.75]))
    assert paired_difference(first, second) == Estimate(0.25, 0)


def test_scores_of_two_suites_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same suite"):
        paired_difference(score("a", (1, [1, 0])), score("b", (1, [1, 0])))


def test_dropping_a_candidate_has_a_bounded_risk() -> None:
    kept, level = score("s", (1, [1.0] * 100)), score("s", (1, [0.5] * 100))
    assert halving_error(kept, []) == 0
    assert halving_error(kept, [kept]) == 1
    assert halving_error(kept, [level]) == pytest.approx(math.exp(-12.5))
    assert halving_error(kept, [level, level]) == pytest.approx(2 * math.exp(-12.5))
    tasks = [(weight, [1.0] * 50) for weight in (1.0, 3.0)]
    lower = [(weight, [0.0] * 50) for weight in (1.0, 3.0)]
    assert halving_error(score("s", *tasks), [score("s", *lower)]) == pytest.approx(math.exp(-1 / (2 * 10 / 16 / 50)))
