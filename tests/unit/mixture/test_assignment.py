"""Who is the best on which item, and who is worth keeping."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glue.mixture.assignment import best_experts, select_experts
from glue.specs.results import SuiteScore, TaskScore


def score(*tasks: Sequence[float]) -> SuiteScore:
    """A score whose tasks have these values."""
    scored = tuple(
        TaskScore(task=f"t{index}", metric="acc", weight=1, mean=sum(values) / len(values), stderr=0, values=values)
        for index, values in enumerate(map(tuple, tasks))
    )
    return SuiteScore(suite="s", mean=0, stderr=0, tasks=scored)


def test_the_highest_value_wins_each_item() -> None:
    assert best_experts([score([1, 0, 0.2]), score([0, 1, 0.4])]) == (0, 1, 1)


def test_items_that_nobody_solves_are_unassigned() -> None:
    assert best_experts([score([0, 1]), score([0, 0])]) == (None, 0)


def test_ties_go_to_the_better_on_the_items_own_task() -> None:
    # Equal on the first item of either task; the means of the tasks decide, each for itself.
    assert best_experts([score([1, 1], [1, 0]), score([1, 0], [1, 1])]) == (0, 0, 1, 1)


def test_ties_of_equally_good_experts_go_to_the_first() -> None:
    assert best_experts([score([1, 0]), score([1, 0])]) == (0, None)


def test_other_items_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same items"):
        best_experts([score([1, 0]), score([1])])


def test_an_expert_with_a_small_share_is_left_out_and_its_items_fall_to_the_rest() -> None:
    scores = [score([1] * 10 + [0] * 10), score([0] * 9 + [1] * 11), score([0] * 19 + [1])]
    crumbs = select_experts([*scores[:2], score([0] * 19 + [2])], 0.1)
    assert crumbs.kept == (0, 1)
    assert crumbs.assignment[-1] == 1
    assert crumbs.support() == (9, 11)
    assert crumbs.left_out == ((2, "the best on 1 of 20 proxy items, fewer than the minimum share of 0.1"),)


def test_an_expert_that_is_never_the_best_is_left_out_whatever_the_share() -> None:
    selection = select_experts([score([1, 1]), score([1, 0])], 0)
    assert selection.kept == (0,)
    assert selection.left_out == ((1, "the best on no proxy item"),)


def test_of_two_that_are_too_small_one_may_take_the_others_items() -> None:
    # Each of the last two is below a quarter, together they are above it.
    scores = [score([1, 1, 1, 1, 1, 0, 0]), score([0, 0, 0, 0, 0, 2, 1]), score([0, 0, 0, 0, 0, 1, 2])]
    selection = select_experts(scores, 0.25)
    assert selection.kept == (0, 1)
    assert selection.support() == (5, 2)


def test_nobody_is_kept_when_nobody_solves_anything() -> None:
    selection = select_experts([score([0, 0]), score([0, 0])], 0.05)
    assert selection.kept == ()
    assert len(selection.left_out) == 2
    assert selection.assignment == (None, None)


values = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@given(
    st.integers(1, 5).flatmap(
        lambda experts: st.lists(st.lists(values, min_size=6, max_size=6), min_size=experts, max_size=experts)
    ),
    st.floats(0, 1),
)
def test_whoever_is_kept_has_its_share_and_nobody_else_is_better(table: list[list[float]], share: float) -> None:
    scores = [score(row[:3], row[3:]) for row in table]
    selection = select_experts(scores, share)
    assert sorted([*selection.kept, *(index for index, _ in selection.left_out)]) == list(range(len(table)))
    total = len([place for place in selection.assignment if place is not None])
    assert all(count > 0 and count >= share * total for count in selection.support())
    for item, place in enumerate(selection.assignment):
        column = [table[index][item] for index in selection.kept]
        assert (max(column, default=0) == 0) == (place is None)
        assert place is None or column[place] == max(column)
