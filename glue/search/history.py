"""What a strategy sees and what it says: observed candidates in, next candidates or the winner out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from glue.specs.expression import Candidate, Expression, members_of


@dataclass(frozen=True)
class Observed:
    """A candidate with its proxy score, from 0 to 1; none when its trial failed, which is not a score of zero.

    `seconds` were spent on it, `items` were scored; both are 0 for a candidate that was known before. One that was
    `dropped` was scored on a part of the items; its mean only ranks it, behind those that were kept.
    """

    candidate: Candidate
    mean: float | None
    seconds: float = 0.0
    items: int = 0
    dropped: bool = False

    @property
    def member(self) -> str:
        """The first member of the candidate; of a single model the model itself."""
        return members_of(self.candidate.expression)[0]


@dataclass(frozen=True)
class History:
    """All that a strategy may depend on.

    `singles` are the family's members with their proxy scores, in zoo order. `generations` are the scored
    candidates of every closed generation, each in candidate order, whoever scored them and when. `similarities`
    are what was measured so far: expression digest to the similarity of each member to that merge.
    """

    singles: tuple[Observed, ...]
    generations: tuple[tuple[Observed, ...], ...] = ()
    similarities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def after(self, generations: int) -> "History":
        """The same without the first `generations`, for a strategy that takes over from another."""
        return History(self.singles, self.generations[generations:], self.similarities)

    def until(self, generations: int) -> "History":
        """The same with only the first `generations`."""
        return History(self.singles, self.generations[:generations], self.similarities)


@dataclass(frozen=True)
class NextGeneration:
    """The candidates to score next; none depends on another's score."""

    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Measure:
    """A merge whose similarity to these members has to be known before the search can go on."""

    expression: Expression
    members: tuple[str, ...]


@dataclass(frozen=True)
class Winner:
    """The end of a search: the best candidate, and the members that are not in it, each with the reason.

    `accepted` are the candidates that became the current merge on the way, or that were the best so far.
    `reason` says why the search ended, where that is not obvious.
    """

    observed: Observed
    rejected: tuple[tuple[str, str], ...]
    accepted: tuple[Candidate, ...]
    reason: str = ""


Step = NextGeneration | Measure | Winner
Strategy = Callable[[History], Step]
Other = TypeVar("Other")


def best_of(observed: Sequence[Observed]) -> int | None:
    """The position of the highest score, the first of equals; none when every trial failed."""
    scored = [(position, item.mean) for position, item in enumerate(observed) if item.mean is not None]
    if not scored:
        return None
    return max(scored, key=lambda pair: (pair[1], -pair[0]))[0]


def by_falling_score(singles: Sequence[Observed]) -> list[Observed]:
    """The singles that have a score, the best first, ties in zoo order.

    Raises:
        ValueError: none has one.
    """
    scored = [(single.mean, single) for single in singles if single.mean is not None]
    if not scored:
        raise ValueError("no single model of the family has a score")
    return [single for _, single in sorted(scored, key=lambda pair: -pair[0])]


def finish(strategy: Callable[[History], Other | Step], history: History) -> tuple[Winner, int] | Other | Step:
    """Let a strategy that others build on run over the history: its winner with the number of generations that
    it used, or what it says to the whole history."""
    for used in range(len(history.generations) + 1):
        step = strategy(history.until(used))
        if isinstance(step, Winner):
            return step, used
    return step
