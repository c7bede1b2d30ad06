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


def halving_error(kept: SuiteScore, dropped: Sequence[SuiteScore]) -> float:
    """At most this is the probability that one of `dropped` is better than `kept` on all items.

    All scores are of the same `Suite.part`. By Hoeffding (1963, "Probability inequalities for sums of bounded random
    variables", theorem 2, which theorem 4 carries over to items drawn without replacement), an item's difference
    lying between -1 and 1: exp(-d^2 / (2 sum((w / W)^2 / n))) for an observed difference d, summed over `dropped`.

    Raises:
        ValueError: the scores are not of one part.
    """
    total = math.fsum(task.weight for task in kept.tasks)
    spread = math.fsum((task.weight / total) ** 2 / len(task.values) for task in kept.tasks)
    gaps = [max(paired_difference(kept, other).mean, 0.0) for other in dropped]
    return min(1.0, math.fsum(math.exp(-(gap**2) / (2 * spread)) for gap in gaps))
