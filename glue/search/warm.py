"""Searches that start from the candidates of an earlier one. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from glue.search.history import History, NextGeneration, Observed, Step, Strategy, Winner, best_of, by_falling_score
from glue.specs.expression import Candidate, members_of
from glue.specs.zoo import BASE

# So many of the earlier search's best are scored again: the best on one suite need not be that on another.
SCORED_AGAIN = 4


def usable(candidates: Sequence[Candidate], members: Sequence[str]) -> tuple[Candidate, ...]:
    """The first few of an earlier job's candidates that are made of these members alone, under names of their own."""
    allowed = {*members, BASE}
    fitting = [each for each in candidates if set(members_of(each.expression)) <= allowed]
    return tuple(each.model_copy(update={"name": f"earlier {each.name}"}) for each in fitting[:SCORED_AGAIN])


@dataclass(frozen=True)
class Earlier:
    """Scores the candidates of an earlier search and ends: the best of them wins, if it beats the single models."""

    candidates: tuple[Candidate, ...]

    def __call__(self, history: History) -> Step:
        """The candidates, then the winner."""
        if not history.generations:
            return NextGeneration(self.candidates)
        best = _best([by_falling_score(history.singles)[0], *history.generations[0]])
        return Winner(best, (), (best.candidate,))


@dataclass(frozen=True)
class Warmed:
    """Another strategy after the candidates of an earlier search; the better end of the two wins."""

    candidates: tuple[Candidate, ...]
    strategy: Strategy

    def __call__(self, history: History) -> Step:
        """The candidates, then whatever the strategy says."""
        if not history.generations:
            return NextGeneration(self.candidates)
        step = self.strategy(history.after(1))
        if not isinstance(step, Winner):
            return step
        best = _best([step.observed, *history.generations[0]])
        if best is step.observed:
            return step
        inside = members_of(best.candidate.expression)
        outside = [single for single in history.singles if single.member not in inside]
        rejected = tuple((single.member, "a candidate of the earlier job without it is better") for single in outside)
        return Winner(best, rejected, (*step.accepted, best.candidate), step.reason)


def _best(observed: Sequence[Observed]) -> Observed:
    position = best_of(observed)
    assert position is not None
    return observed[position]
