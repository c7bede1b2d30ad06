import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glue.evaluation.metrics import mean_of, metric_named


@pytest.mark.parametrize("source", ["acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"])
def test_accuracies_are_taken_as_they_are(source: str) -> None:
    assert [metric_named(source).value(result) for result in (0, 1, 1.0)] == [0.0, 1.0, 1.0]


@given(st.floats(1, 1000), st.integers(1, 500))
def test_a_perplexity_counts_as_its_inverse(perplexity: float, words: int) -> None:
    log_likelihood = -words * math.log(perplexity)
    for source in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert metric_named(source).value((log_likelihood, words)) == pytest.approx(1 / perplexity, abs=1e-6)


@given(st.floats(-500, 0))
def test_every_value_is_from_zero_to_one(log_likelihood: float) -> None:
    assert 0 <= metric_named("perplexity").value(log_likelihood) <= 1
    assert 0 <= metric_named("byte_perplexity").value((log_likelihood, 0)) <= 1


def test_a_tasks_own_metric_counts_only_from_zero_to_one() -> None:
    assert metric_named("bleu") is None
    assert mean_of("strict").value(True) == 1.0
    with pytest.raises(ValueError, match=r"gives 37\.5, and scores lie between 0 and 1"):
        mean_of("bleu").value(37.5)
