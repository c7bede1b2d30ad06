"""What one item's result is worth: a number from 0 to 1, higher is better, whose mean is the task's score."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from glue.evaluation.statistics import DIGITS

FIRST_TRY = "pass_at_1"


@dataclass(frozen=True)
class Metric:
    """`source` is lm-eval's name, `name` is ours, `value` turns lm-eval's result of one item into a number."""

    source: str
    name: str
    value: Callable[[Any], float]


def metric_named(source: str) -> Metric | None:
    """The metric of that lm-eval name, if it is one of those that lm-eval defines itself.

    A perplexity is better when lower, has no bound, and its mean over items is not the task's perplexity. Its
    score is the inverse instead, item by item: the geometric mean probability of the item's words or bytes.
    """
    return _METRICS.get(source)


def mean_of(source: str) -> Metric:
    """A metric that a task computes itself, item by item, and whose mean is its result."""

    def value(result: Any) -> float:
        number = round(float(result), DIGITS)
        if not 0 <= number <= 1:
            raise ValueError(f"the metric {source} gives {number}, and scores lie between 0 and 1")
        return number

    return Metric(source, source, value)


def _correct(result: Any) -> float:
    # A share of the probability, as in TruthfulQA's second task, carries the noise of its sums.
    return round(float(result), DIGITS)


def _probability(log_likelihood: Any) -> float:
    return round(math.exp(float(log_likelihood)), DIGITS)


def _probability_per_unit(result: Sequence[float]) -> float:
    log_likelihood, units = result
    return round(math.exp(float(log_likelihood) / max(units, 1)), DIGITS)


_METRICS = {
    metric.source: metric
    for metric in (
        Metric("acc", "acc", _correct),
        Metric("acc_norm", "acc_norm", _correct),
        Metric("acc_bytes", "acc_bytes", _correct),
        Metric("acc_mutual_info", "acc_mutual_info", _correct),
        Metric("exact_match", "exact_match", _correct),
        Metric(FIRST_TRY, FIRST_TRY, _correct),
        Metric("perplexity", "inverse_perplexity", _probability),
        Metric("word_perplexity", "inverse_word_perplexity", _probability_per_unit),
        Metric("byte_perplexity", "inverse_byte_perplexity", _probability_per_unit),
        Metric("bits_per_byte", "inverse_byte_perplexity", _probability_per_unit),
    )
}
