"""Families from similarities: the paper's leader linkage, and complete and average linkage."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glue.clustering.linkage import families

LINKAGES = ("leader", "complete", "average")
Matrix = list[list[float]]


def symmetric(values: dict[tuple[int, int], float], size: int) -> Matrix:
    """The matrix with these values above and below the diagonal, 1 on it, 0 elsewhere."""
    matrix = [[float(row == column) for column in range(size)] for row in range(size)]
    for (row, column), value in values.items():
        matrix[row][column] = matrix[column][row] = value
    return matrix


def pairs_of(size: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(size) for column in range(row)]


@st.composite
def similarities(draw: Any) -> Matrix:
    """Symmetric matrices over up to seven members."""
    pairs = pairs_of(size := draw(st.integers(1, 7)))
    values = draw(st.lists(st.floats(-1, 1), min_size=len(pairs), max_size=len(pairs)))
    return symmetric(dict(zip(pairs, values, strict=True)), size)


@st.composite
def similarities_without_ties(draw: Any) -> Matrix:
    """The same, where no two similarities nor means of some of them are equal."""
    pairs = pairs_of(size := draw(st.integers(1, 7)))
    values = draw(st.permutations([math.sqrt(number + 0.5) % 1 for number in range(len(pairs))]))
    return symmetric(dict(zip(pairs, values, strict=True)), size)


def named(matrix: Matrix) -> list[str]:
    return [f"m{index}" for index in range(len(matrix))]


@pytest.mark.parametrize("linkage", LINKAGES)
@given(matrix=similarities(), threshold=st.floats(-1, 1))
def test_nobody_is_dropped_and_order_is_kept(linkage: str, matrix: Matrix, threshold: float) -> None:
    members = named(matrix)
    found = families(members, matrix, threshold, linkage)
    assert sorted(name for family in found for name in family) == sorted(members)
    assert all(list(family) == sorted(family, key=members.index) for family in found)
    assert [family[0] for family in found] == sorted((family[0] for family in found), key=members.index)


@pytest.mark.parametrize("linkage", LINKAGES)
@given(matrix=similarities())
def test_thresholds_beyond_every_similarity(linkage: str, matrix: Matrix) -> None:
    members = named(matrix)
    assert families(members, matrix, 1.01, linkage) == [(name,) for name in members]
    assert families(members, matrix, -1.01, linkage) == [tuple(members)]


@given(matrix=similarities(), threshold=st.floats(-1, 1))
def test_complete_linkage_vouches_for_every_pair(matrix: Matrix, threshold: float) -> None:
    members = named(matrix)
    for family in families(members, matrix, threshold, "complete"):
        indices = [members.index(name) for name in family]
        assert all(matrix[one][other] > threshold for one in indices for other in indices if one != other)


@given(matrix=similarities(), threshold=st.floats(-1, 1))
def test_leader_linkage_vouches_for_the_first_member(matrix: Matrix, threshold: float) -> None:
    members = named(matrix)
    for family in families(members, matrix, threshold, "leader"):
        first, *others = [members.index(name) for name in family]
        assert all(matrix[first][other] > threshold for other in others)


@pytest.mark.parametrize("linkage", ["complete", "average"])
@given(matrix=similarities_without_ties(), threshold=st.floats(-1, 1), data=st.data())
def test_the_order_of_members_does_not_matter(linkage: str, matrix: Matrix, threshold: float, data: Any) -> None:
    order = data.draw(st.permutations(range(len(matrix))))
    members = named(matrix)
    shuffled = [[matrix[one][other] for other in order] for one in order]
    before = families(members, matrix, threshold, linkage)
    after = families([members[index] for index in order], shuffled, threshold, linkage)
    assert {frozenset(family) for family in before} == {frozenset(family) for family in after}


def test_a_chain_shows_the_difference() -> None:
    chain = symmetric({(0, 1): 0.97, (1, 2): 0.96, (0, 2): 0.90}, 3)
    assert families("abc", chain, 0.95, "leader") == [("a", "b"), ("c",)]
    assert families("bac", [[chain[i][j] for j in (1, 0, 2)] for i in (1, 0, 2)], 0.95, "leader") == [("b", "a", "c")]
    assert families("abc", chain, 0.95, "complete") == [("a", "b"), ("c",)]
    assert families("abc", chain, 0.92, "average") == [("a", "b", "c")]


def test_equal_to_the_threshold_is_not_above_it() -> None:
    assert families("ab", symmetric({(0, 1): 0.95}, 2), 0.95, "complete") == [("a",), ("b",)]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="single"):
        families("ab", symmetric({}, 2), 0.5, "single")
    with pytest.raises(ValueError, match="square"):
        families("ab", symmetric({}, 3), 0.5, "complete")
