"""What a strategy sees and what it says: observed candidates in, next candidates or the winner out."""

from collections.abc import Sequence
from dataclasses import dataclass

from glue.specs.expression import Candidate


@dataclass(frozen=True)
class Observed:
    """A candidate with its proxy score, from 0 to 1; none when its trial failed, which is not a score of zero."""

    candidate: Candidate
    mean: float | None


@dataclass(frozen=True)
class History:
    """All that a strategy may depend on.

    `singles` are the family's members with their proxy scores, in zoo order. `generations` are the scored
    candidates of every closed generation, each in candidate order, whoever scored them and when.
    """

    singles: tuple[Observed, ...]
    generations: tuple[tuple[Observed, ...], ...] = ()


@dataclass(frozen=True)
class NextGeneration:
    """The candidates to score next; none depends on another's score."""

    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Winner:
    """The end of a search: the best candidate, and the members that are not in it, each with the reason.

    `accepted` holds (generation, position) of every candidate that became the current merge on the way.
    """

    observed: Observed
    rejected: tuple[tuple[str, str], ...]
    accepted: tuple[tuple[int, int], ...]


def best_of(observed: Sequence[Observed]) -> int | None:
    """The position of the highest score, the first of equals; none when every trial failed."""
    scored = [(position, item.mean) for position, item in enumerate(observed) if item.mean is not None]
    if not scored:
        return None
    return max(scored, key=lambda pair: (pair[1], -pair[0]))[0]
