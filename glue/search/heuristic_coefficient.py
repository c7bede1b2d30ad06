"""Heuristic-Coefficient: add the members one by one, each with the best of a list of coefficients.

Source: Model-GLUE (arXiv 2410.05357), appendix A.1. `c` is the weight of the current merge; the next member
gets `1 - c`. A merge that is at least as good as the current one is accepted, as in the paper's code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from glue.search.history import History, NextGeneration, Observed, Winner, best_of
from glue.specs.expression import Candidate, Merge, linear, members_of

# Products of coefficients carry noise in their last bits; twelve digits are exact for every list people write.
WEIGHT_DIGITS = 12


@dataclass(frozen=True)
class _Current:
    weights: dict[str, float]
    observed: Observed


def heuristic_coefficient(history: History, coefficients: Sequence[float]) -> NextGeneration | Winner:
    """The next generation of candidates, or the winner when every member had its turn.

    Members are taken by falling proxy score, ties in zoo order. Among equal merges the larger coefficient wins.

    Raises:
        ValueError: no single model of the family has a score.
    """
    order = _by_score(history.singles)
    current = _Current({_name(order[0]): 1.0}, order[0])
    rejected: list[tuple[str, str]] = []
    accepted: list[tuple[int, int]] = []
    ordered = sorted(coefficients, reverse=True)
    for generation, single in enumerate(order[1:]):
        name = _name(single)
        if generation == len(history.generations):
            return NextGeneration(tuple(_candidate(_weights(current.weights, name, c)) for c in ordered))
        scored = history.generations[generation]
        position = best_of(scored)
        reason = _why_not(current.observed, scored, position)
        if position is None or reason:
            rejected.append((name, reason))
        else:
            accepted.append((generation, position))
            current = _Current(_weights(current.weights, name, ordered[position]), scored[position])
    failed = [(_name(single), "it could not be scored on the proxy suite") for single in _failed(history.singles)]
    return Winner(current.observed, tuple(rejected + failed), tuple(accepted))


def _by_score(singles: Sequence[Observed]) -> list[Observed]:
    scored = [(single.mean, single) for single in singles if single.mean is not None]
    if not scored:
        raise ValueError("no single model of the family has a score")
    return [single for _, single in sorted(scored, key=lambda pair: -pair[0])]


def _failed(singles: Sequence[Observed]) -> list[Observed]:
    return [single for single in singles if single.mean is None]


def _why_not(current: Observed, scored: Sequence[Observed], position: int | None) -> str:
    if position is None:
        return "every merge with it failed"
    best, now = scored[position].mean, current.mean
    assert best is not None
    assert now is not None
    return "" if best >= now else f"the best merge with it scores {best:.4f}, without it {now:.4f}"


def _weights(current: dict[str, float], name: str, coefficient: float) -> dict[str, float]:
    scaled = {member: round(weight * coefficient, WEIGHT_DIGITS) for member, weight in current.items()}
    return scaled | {name: round(1 - coefficient, WEIGHT_DIGITS)}


def _candidate(weights: dict[str, float]) -> Candidate:
    name = " + ".join(f"{weight:.4g} {member}" for member, weight in weights.items())
    return Candidate(name=name, expression=linear(weights))


def _name(single: Observed) -> str:
    expression = single.candidate.expression
    assert not isinstance(expression, Merge)
    return members_of(expression)[0]
