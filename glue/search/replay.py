"""Bring a strategy forward from what is recorded: which candidates to score next, or who has won. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from glue.search.halving import Missing, Screened, halve, unique
from glue.search.history import History, Measure, Observed, Strategy, Winner
from glue.specs.expression import Candidate, expression_digest

Generation = tuple[Candidate, ...]


@dataclass(frozen=True)
class Known:
    """What has been scored, by expression digest, whether it worked or not; and what has been measured.

    `screened` are scores on a part of the items, where the search halves its generations; `before` are the digests
    that had a score on all items before the search began.
    """

    scored: Mapping[str, Observed]
    similarities: Mapping[str, Mapping[str, float]]
    screened: Mapping[str, Observed] = field(default_factory=dict)
    before: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Pending:
    """What has to be done before the strategy can go on: candidates to score, or a similarity to measure.

    `proposed` are the generations that the strategy opened meanwhile; recorded, they are never asked for again.
    `on_a_part` says that the candidates are to be scored on a part of the items.
    """

    proposed: tuple[Generation, ...]
    candidates: tuple[Candidate, ...] = ()
    measure: Measure | None = None
    on_a_part: bool = False


@dataclass(frozen=True)
class Ended:
    """The winner, with every generation of the search, and how each was halved."""

    winner: Winner
    generations: tuple[tuple[Observed, ...], ...]
    screened: tuple[Screened, ...] = ()


def replay(
    strategy: Strategy,
    singles: Sequence[Observed],
    recorded: Sequence[Generation],
    known: Known,
    keep: float | None = None,
) -> Pending | Ended:
    """Run the strategy over the recorded generations and on, as far as everything it proposes is known already.

    Candidates that are equal by digest are scored once, also across generations: the second one takes the first
    one's score. Scores are taken in candidate order, so it does not matter who was faster. With `keep` a generation
    is scored on a part of the items, and that share of it on all.
    """
    waiting, proposed, view = list(recorded), list[Generation](), _View(known, keep)
    while True:
        if not waiting:
            step = strategy(History(tuple(singles), tuple(view.generations), known.similarities))
            if isinstance(step, Winner):
                return Ended(step, tuple(view.generations), tuple(view.screened))
            if isinstance(step, Measure):
                return Pending(tuple(proposed), measure=step)
            waiting.append(step.candidates)
            proposed.append(step.candidates)
        missing = view.add(waiting.pop(0))
        if missing:
            return Pending(tuple(proposed), missing.candidates, on_a_part=missing.on_a_part)


class _View:
    """The generations as a strategy sees them, one after the other, each by what was known when it was closed."""

    def __init__(self, known: Known, keep: float | None) -> None:
        self.generations: list[tuple[Observed, ...]] = []
        self.screened: list[Screened] = []
        self._known, self._keep, self._seen = known, keep, known.before

    def add(self, generation: Generation) -> Missing | None:
        """Close the generation, or say what has to be scored first."""
        if self._keep is None:
            missing = tuple(each for digest, each in unique(generation).items() if digest not in self._known.scored)
            if missing:
                return Missing(missing, on_a_part=False)
            self.generations.append(_observed(generation, self._known))
            return None
        halved = halve(generation, self._known.screened, self._known.scored, self._seen, self._keep)
        if isinstance(halved, Missing):
            return halved
        self.generations.append(halved[0])
        self.screened.append(halved[1])
        self._seen |= set(halved[1].kept)
        return None


def _observed(generation: Generation, known: Known) -> tuple[Observed, ...]:
    found = []
    for candidate in generation:
        scored = known.scored[expression_digest(candidate.expression)]
        # What was scored for another candidate cost this one nothing.
        own = scored.candidate.name == candidate.name
        found.append(Observed(candidate, scored.mean, scored.seconds * own, scored.items * own))
    return tuple(found)
