"""Greedy searches: members join the current merge one by one, each with the best of some coefficients.

Source: Model-GLUE (arXiv 2410.05357), appendix A.1, and Model Soups (arXiv 2203.05482) for the running mean.
`c` is the weight of the current merge; the next member gets `1 - c`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from glue.search.history import (
    History,
    Measure,
    NextGeneration,
    Observed,
    Step,
    Winner,
    best_of,
    by_falling_score,
)
from glue.specs.expression import Candidate, Expression, expression_digest, linear

# Products of coefficients carry noise in their last bits; twelve digits are exact for every list people write.
WEIGHT_DIGITS = 12
UNSCORED = "it could not be scored on the proxy suite"

Coefficients = Callable[[int], Sequence[float]]


@dataclass(frozen=True)
class _Current:
    """The current merge, the number of members in it, and how it scored."""

    weights: dict[str, float]
    observed: Observed

    @property
    def expression(self) -> Expression:
        return linear(self.weights)


@dataclass(frozen=True)
class Greedy:
    """A greedy search. `coefficients` of the number of members in the current merge; `strict` accepts only what
    is better; `order` takes next the member most or least similar to the current merge instead of the best."""

    coefficients: Coefficients
    strict: bool = False
    order: Literal["highest", "lowest"] | None = None

    def __call__(self, history: History) -> Step:
        """The next generation, or the winner when every member had its turn. Of equal merges the larger
        coefficient wins.

        Raises:
            ValueError: no single model of the family has a score.
        """
        waiting = by_falling_score(history.singles)
        current = _Current({waiting[0].member: 1.0}, waiting.pop(0))
        rejected: list[tuple[str, str]] = []
        accepted: list[Candidate] = []
        for generation in range(len(waiting)):
            chosen = self._next(waiting, current, history)
            if isinstance(chosen, Measure):
                return chosen
            single = waiting.pop(chosen)
            candidates = self._candidates(current, single.member)
            if generation == len(history.generations):
                return NextGeneration(candidates)
            scored = history.generations[generation]
            position = best_of(scored)
            reason = self._why_not(current.observed, scored, position)
            if position is None or reason:
                rejected.append((single.member, reason))
            else:
                accepted.append(candidates[position])
                weights = _weights(current.weights, single.member, self._ordered(current)[position])
                current = _Current(weights, scored[position])
        failed = [(single.member, UNSCORED) for single in history.singles if single.mean is None]
        return Winner(current.observed, tuple(rejected + failed), tuple(accepted))

    def _next(self, waiting: Sequence[Observed], current: _Current, history: History) -> int | Measure:
        if self.order is None or len(waiting) == 1:
            return 0
        names = tuple(single.member for single in waiting)
        measured = history.similarities.get(expression_digest(current.expression), {})
        if not set(names) <= measured.keys():
            return Measure(current.expression, names)
        sign = 1 if self.order == "highest" else -1
        return max(range(len(names)), key=lambda place: (sign * measured[names[place]], -place))

    def _ordered(self, current: _Current) -> list[float]:
        return sorted(self.coefficients(len(current.weights)), reverse=True)

    def _candidates(self, current: _Current, name: str) -> tuple[Candidate, ...]:
        return tuple(_candidate(_weights(current.weights, name, c)) for c in self._ordered(current))

    def _why_not(self, current: Observed, scored: Sequence[Observed], position: int | None) -> str:
        if position is None:
            return "every merge with it failed"
        best, now = scored[position].mean, current.mean
        assert best is not None
        assert now is not None
        if best > now or (best == now and not self.strict):
            return ""
        return f"the best merge with it scores {best:.4f}, without it {now:.4f}"


def heuristic_coefficient(coefficients: Sequence[float]) -> Greedy:
    """Heuristic-Coefficient: the best of a fixed list, accepted if not worse, as in the paper's code."""
    return Greedy(lambda members: coefficients)


def heuristic_average() -> Greedy:
    """Heuristic-Average: the running mean k/(k+1), accepted if not worse."""
    return Greedy(running_mean)


def greedy_soup() -> Greedy:
    """Greedy soup: the running mean, accepted only if better."""
    return Greedy(running_mean, strict=True)


def heuristic_similarity(coefficients: Sequence[float], order: Literal["highest", "lowest"]) -> Greedy:
    """Heuristic-Similarity: the next member is the most (or least) similar to the current merge."""
    return Greedy(lambda members: coefficients, order=order)


def running_mean(members: int) -> tuple[float]:
    """The weight of a merge of k members into which one more joins with equal weight: k / (k + 1)."""
    return (members / (members + 1),)


def _weights(current: dict[str, float], name: str, coefficient: float) -> dict[str, float]:
    scaled = {member: round(weight * coefficient, WEIGHT_DIGITS) for member, weight in current.items()}
    return scaled | {name: round(1 - coefficient, WEIGHT_DIGITS)}


def _candidate(weights: dict[str, float]) -> Candidate:
    name = " + ".join(f"{weight:.4g} {member}" for member, weight in weights.items())
    return Candidate(name=name, expression=linear(weights))
