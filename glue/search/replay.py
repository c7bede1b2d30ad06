"""Bring a strategy forward from what is recorded: which candidates to score next, or who has won. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glue.search.history import History, Measure, Observed, Strategy, Winner
from glue.specs.expression import Candidate, expression_digest

Generation = tuple[Candidate, ...]


@dataclass(frozen=True)
class Known:
    """What has been scored, by expression digest, whether it worked or not; and what has been measured."""

    scored: Mapping[str, Observed]
    similarities: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Pending:
    """What has to be done before the strategy can go on: candidates to score, or a similarity to measure.

    `proposed` are the generations that the strategy opened meanwhile; recorded, they are never asked for again.
    """

    proposed: tuple[Generation, ...]
    candidates: tuple[Candidate, ...] = ()
    measure: Measure | None = None


@dataclass(frozen=True)
class Ended:
    """The winner, with every generation of the search."""

    winner: Winner
    generations: tuple[tuple[Observed, ...], ...]


def replay(
    strategy: Strategy, singles: Sequence[Observed], recorded: Sequence[Generation], known: Known
) -> Pending | Ended:
    """Run the strategy over the recorded generations and on, as far as everything it proposes is known already.

    Candidates that are equal by digest are scored once, also across generations: the second one takes the first
    one's score. Scores are taken in candidate order, so it does not matter who was faster.
    """
    generations = [_observed(generation, known) for generation in recorded]
    proposed: list[Generation] = []
    while True:
        history = History(tuple(singles), tuple(generations), known.similarities)
        step = strategy(history)
        if isinstance(step, Winner):
            return Ended(step, history.generations)
        if isinstance(step, Measure):
            return Pending(tuple(proposed), measure=step)
        proposed.append(step.candidates)
        missing = {_digest(each): each for each in reversed(step.candidates) if _digest(each) not in known.scored}
        if missing:
            return Pending(tuple(proposed), tuple(reversed(missing.values())))
        generations.append(_observed(step.candidates, known))


def _observed(generation: Generation, known: Known) -> tuple[Observed, ...]:
    found = []
    for candidate in generation:
        scored = known.scored[_digest(candidate)]
        # What was scored for another candidate cost this one nothing.
        own = scored.candidate.name == candidate.name
        found.append(Observed(candidate, scored.mean, scored.seconds * own, scored.items * own))
    return tuple(found)


def _digest(candidate: Candidate) -> str:
    return expression_digest(candidate.expression)
