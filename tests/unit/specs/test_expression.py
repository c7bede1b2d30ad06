"""Expressions are values: they survive JSON, and their digest names what they are made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glue.specs.errors import InvalidInputError
from glue.specs.expression import (
    Input,
    Member,
    Merge,
    expression_digest,
    linear,
    members_of,
    parse_expression,
)

names = st.sampled_from(["a", "b", "c", "d"])
leaves = st.builds(Member, name=names)
trees = st.recursive(
    leaves,
    lambda inner: st.builds(
        Merge,
        method=st.sampled_from(["linear", "ties"]),
        inputs=st.lists(
            st.builds(Input, model=inner, parameters=st.dictionaries(st.just("weight"), st.floats(-2, 2))),
            min_size=1,
            max_size=3,
        ).map(tuple),
        base=st.none() | inner,
    ),
    max_leaves=6,
)


@given(trees)
def test_a_tree_survives_json_with_its_digest(tree: Member | Merge) -> None:
    again = parse_expression(tree.as_json())
    assert again == tree
    assert expression_digest(again) == expression_digest(tree)


@given(trees)
def test_contents_replace_names(tree: Member | Merge) -> None:
    contents = {name: f"content of {name}" for name in "abcd"}
    assert expression_digest(tree, contents) != expression_digest(tree)
    assert set(members_of(tree)) <= set("abcd")


def test_another_weight_is_another_candidate() -> None:
    assert expression_digest(linear({"a": 0.5, "b": 0.5})) != expression_digest(linear({"a": 0.4, "b": 0.6}))
    assert members_of(linear({"a": 0.4, "b": 0.6})) == ("a", "b")


def test_nonsense_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        parse_expression({"node": "merge", "method": "linear", "inputs": []})
