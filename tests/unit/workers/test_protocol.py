"""What the engine's two sides say survives the pipe."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glue.specs.plan import (
    ArtifactPlan,
    FinishedUnit,
    StageOutcome,
    UnitOutcome,
    UnitPlan,
    UnitRequest,
    WorkerClass,
)
from workers.engine.protocol import (
    Answer,
    Done,
    Failed,
    Progress,
    Run,
    decode_answer,
    decode_run,
    encode_answer,
    encode_run,
)

texts = st.text(max_size=20)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, values, max_size=3)
counts = st.integers(0, 10**12)

finished_units = st.builds(FinishedUnit, counts, counts, texts, objects, st.none() | objects, st.none() | objects)
requests = st.builds(
    UnitRequest,
    texts, texts, texts, texts, texts, counts, counts, counts, texts, objects, objects,
    outcomes=st.lists(st.builds(StageOutcome, texts, texts, objects), max_size=2).map(tuple),
    units=st.lists(finished_units, max_size=2).map(tuple),
)  # fmt: skip
unit_plans = st.builds(UnitPlan, texts, objects, st.sampled_from(WorkerClass), counts)
results = st.builds(
    UnitOutcome,
    objects,
    st.none() | st.builds(ArtifactPlan, texts, texts, texts, objects),
    st.lists(unit_plans, max_size=2).map(tuple),
    st.booleans(),
)
answers = st.builds(Progress, st.floats(0, 1), texts) | st.builds(Done, results) | st.builds(Failed, objects)


@given(st.builds(Run, requests, texts, texts, texts))
def test_a_request_is_one_line_and_comes_back_equal(run: Run) -> None:
    line = encode_run(run)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode_run(line) == run


@given(answers)
def test_an_answer_is_one_line_and_comes_back_equal(answer: Answer) -> None:
    line = encode_answer(answer)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode_answer(line) == answer


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused(number: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_answer(Done(UnitOutcome({"mean": number})))
