"""Heuristic-Coefficient against hand-worked histories, and its laws."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glue.search.greedy import greedy_soup, heuristic_average, heuristic_coefficient, heuristic_similarity
from glue.search.history import History, Measure, NextGeneration, Observed, Strategy, Winner
from glue.specs.expression import Candidate, Member, Merge, expression_digest, linear, members_of

Score = Callable[[Member | Merge], float | None]


def single(name: str, mean: float | None) -> Observed:
    return Observed(Candidate(name=name, expression=Member(name=name)), mean)


def weights_of(expression: Member | Merge) -> dict[str, float]:
    if isinstance(expression, Member):
        return {expression.name: 1.0}
    return {members_of(part.model)[0]: part.parameters["weight"] for part in expression.inputs}


def run(singles: tuple[Observed, ...], strategy: Strategy, score: Score) -> tuple[History, Winner]:
    history = History(singles)
    while isinstance(step := strategy(history), NextGeneration):
        scored = tuple(Observed(candidate, score(candidate.expression)) for candidate in step.candidates)
        history = History(singles, (*history.generations, scored))
    assert isinstance(step, Winner)
    return history, step


def test_first_generation_adds_the_second_best_to_the_best_with_every_coefficient() -> None:
    step = heuristic_coefficient((0.1, 0.9))(History((single("a", 0.4), single("b", 0.6))))
    assert isinstance(step, NextGeneration)
    assert [weights_of(candidate.expression) for candidate in step.candidates] == [
        {"b": 0.9, "a": 0.1},
        {"b": 0.1, "a": 0.9},
    ]
    assert step.candidates[0].name == "0.9 b + 0.1 a"


def test_accepted_weights_unroll_to_the_sequential_merge() -> None:
    singles = (single("a", 0.5), single("b", 0.4), single("c", 0.3))
    wanted = {"a": 0.4, "b": 0.1, "c": 0.5}

    def score(expression: Member | Merge) -> float:
        got = weights_of(expression)
        return 1.0 if got == wanted else 0.9 if got == {"a": 0.8, "b": 0.2} else 0.1

    history, winner = run(singles, heuristic_coefficient((0.5, 0.8)), score)
    assert weights_of(winner.observed.candidate.expression) == wanted
    assert [candidate.name for candidate in winner.accepted] == ["0.8 a + 0.2 b", "0.4 a + 0.1 b + 0.5 c"]
    assert winner.rejected == ()
    assert [len(generation) for generation in history.generations] == [2, 2]


def test_a_member_that_makes_it_worse_is_rejected_for_good_with_the_numbers() -> None:
    _, winner = run((single("a", 0.5), single("b", 0.4)), heuristic_coefficient((0.3, 0.7)), lambda expression: 0.25)
    assert winner.observed.candidate.expression == Member(name="a")
    assert winner.rejected == (("b", "the best merge with it scores 0.2500, without it 0.5000"),)


def test_equal_merges_take_the_larger_coefficient_and_equal_scores_are_accepted() -> None:
    _, winner = run(
        (single("a", 0.5), single("b", 0.4)), heuristic_coefficient((0.3, 0.7, 0.5)), lambda expression: 0.5
    )
    assert weights_of(winner.observed.candidate.expression) == {"a": 0.7, "b": 0.3}


def test_a_failed_trial_is_not_a_score_of_zero() -> None:
    def fails_at_half(expression: Member | Merge) -> float | None:
        return None if 0.5 in weights_of(expression).values() else 0.0

    _, winner = run((single("a", 0.0), single("b", 0.0)), heuristic_coefficient((0.5, 0.2)), fails_at_half)
    assert weights_of(winner.observed.candidate.expression) == {"a": 0.2, "b": 0.8}
    _, winner = run((single("a", 0.0), single("b", 0.0)), heuristic_coefficient((0.5,)), fails_at_half)
    assert winner.rejected == (("b", "every merge with it failed"),)


def test_a_single_without_a_score_takes_no_part_and_is_named() -> None:
    _, winner = run((single("a", None), single("b", 0.2)), heuristic_coefficient((0.5,)), lambda expression: 1.0)
    assert winner.observed.candidate.expression == Member(name="b")
    assert winner.rejected == (("a", "it could not be scored on the proxy suite"),)
    with pytest.raises(ValueError, match="no single model"):
        heuristic_coefficient((0.5,))(History((single("a", None),)))


means = st.floats(0, 1, allow_nan=False)


@given(
    st.lists(means, min_size=1, max_size=5), st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.9]), min_size=1, unique=True)
)
def test_never_worse_than_the_best_single_and_weights_sum_to_one(
    scores: list[float], coefficients: list[float]
) -> None:
    singles = tuple(single(f"m{index}", mean) for index, mean in enumerate(scores))

    def score(expression: Member | Merge) -> float:
        return int(expression_digest(expression)[:6], 16) / 16**6

    strategy = heuristic_coefficient(coefficients)
    history, winner = run(singles, strategy, score)
    assert winner.observed.mean is not None
    assert winner.observed.mean >= max(scores)
    assert sum(weights_of(winner.observed.candidate.expression).values()) == pytest.approx(1)
    assert len(history.generations) == len(scores) - 1
    in_winner = set(members_of(winner.observed.candidate.expression))
    assert in_winner | {name for name, _ in winner.rejected} == {f"m{index}" for index in range(len(scores))}
    assert strategy(history) == winner


def test_weights_of_zero_leave_no_input() -> None:
    assert linear({"a": 1.0, "b": 0.0}) == Member(name="a")


def test_the_average_is_the_running_mean_and_takes_equals() -> None:
    singles = (single("a", 0.5), single("b", 0.4), single("c", 0.3))
    _, winner = run(singles, heuristic_average(), lambda expression: 0.5)
    assert weights_of(winner.observed.candidate.expression) == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})


def test_the_soup_takes_only_what_is_better() -> None:
    singles = (single("a", 0.5), single("b", 0.4))
    _, winner = run(singles, greedy_soup(), lambda expression: 0.5)
    assert winner.observed.candidate.expression == Member(name="a")
    _, winner = run(singles, greedy_soup(), lambda expression: 0.6)
    assert weights_of(winner.observed.candidate.expression) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(("order", "first"), [("highest", "c"), ("lowest", "b")])
def test_similarity_to_the_current_merge_decides_who_comes_next(order: str, first: str) -> None:
    singles = (single("a", 0.5), single("b", 0.4), single("c", 0.3))
    strategy = heuristic_similarity((0.5,), "highest" if order == "highest" else "lowest")
    asked = strategy(History(singles))
    assert asked == Measure(Member(name="a"), ("b", "c"))
    measured = {expression_digest(Member(name="a")): {"b": 0.2, "c": 0.9}}
    step = strategy(History(singles, (), measured))
    assert isinstance(step, NextGeneration)
    assert set(weights_of(step.candidates[0].expression)) == {"a", first}
