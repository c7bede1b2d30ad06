"""Means, standard errors and paired differences of scores. Pure: knows no torch and no lm-eval."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from glue.specs.results import SuiteScore

DIGITS = 6


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    stderr: float

    def rounded(self) -> "Estimate":
        """Both to six digits, the precision of every score that a strategy or a person sees."""
        # Adding zero turns -0.0 into 0.0: equal scores have one form in JSON.
        return Estimate(round(self.mean, DIGITS) + 0.0, round(self.stderr, DIGITS) + 0.0)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean and s / sqrt(n), s being the sample standard deviation (lm-eval's `mean_stderr`).

    Raises:
        ValueError: fewer than two values, which have no standard deviation.
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"a standard error needs at least two values, there are {count}")
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean, math.sqrt(variance / count))


def weighted(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """The weighted mean of independent estimates: sum(w m) / sum(w), and sqrt(sum((w s)^2)) / sum(w)."""
    total = math.fsum(weights)
    pairs = list(zip(estimates, weights, strict=True))
    mean = math.fsum(weight * part.mean for part, weight in pairs) / total
    stderr = math.sqrt(math.fsum((weight * part.stderr) ** 2 for part, weight in pairs)) / total
    return Estimate(mean, stderr)


def paired_difference(first: SuiteScore, second: SuiteScore) -> Estimate:
    """By how much `first` is better than `second`, item by item, tasks weighted as in the suite.

    The items are the same, so what makes an item hard for both cancels: the standard error is that of the
    differences, usually smaller than that of either score.

    Raises:
        ValueError: the scores are not of one suite.
    """
    if first.suite != second.suite:
        raise ValueError("a paired difference needs two scores of the same suite")
    differences = []
    for ours, theirs in zip(first.tasks, second.tasks, strict=True):
        differences.append(estimate([a - b for a, b in zip(ours.values, theirs.values, strict=True)]))
    return weighted(differences, [task.weight for task in first.tasks]).rounded()
