"""JSON values on their way into a row."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from glue.records.values import storable, summary_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_what_is_storable_has_neither_nul_nor_lone_surrogates(value: Any) -> None:
    text = json.dumps(storable(value), ensure_ascii=False)

    assert "\\u0000" not in text.replace("\\\\", "")
    text.encode("utf-8")


@given(JSON)
def test_making_it_storable_twice_changes_nothing(value: Any) -> None:
    assert storable(storable(value)) == storable(value)


def test_ordinary_values_stay_as_they_are() -> None:
    value = {"a": [1, 2.5, None, True, "é"], "b": {"c": "\n"}}

    assert storable(value) == value


def test_a_summary_holds_the_scalars_of_two_levels() -> None:
    result = {
        "name": "math-a",
        "expression": {"node": "merge", "inputs": [{"model": {}}]},
        "score": {"mean": 0.5, "tasks": [{"values": [1.0] * 1000}], "note": "x" * 201},
        "values": [0.0] * 1000,
        "nothing": None,
    }

    assert summary_of(result) == {"name": "math-a", "expression": {"node": "merge"}, "score": {"mean": 0.5}}
