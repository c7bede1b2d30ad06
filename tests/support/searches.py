"""A search without models: candidates are scored by a function, by as many workers as one likes, in any order."""

from collections.abc import Callable, Sequence
from random import Random

from glue.search.history import Observed, Strategy
from glue.search.replay import Ended, Generation, Known, Pending, replay
from glue.specs.expression import Candidate, Expression, Member, expression_digest

Score = Callable[[Expression], float | None]
Similarity = Callable[[Expression, str], float]


def single(name: str, mean: float | None) -> Observed:
    """A member as a candidate, with its score."""
    return Observed(Candidate(name=name, expression=Member(name=name)), mean)


class Search:
    """Runs a strategy as the stage does: from records alone, at each step anew.

    `order` is the seed of the order in which a generation's scores arrive.
    """

    def __init__(self, strategy: Strategy, singles: Sequence[Observed], score: Score, order: int = 0) -> None:
        self._strategy = strategy
        self._singles = singles
        self._score = score
        self._random = Random(order)
        self.recorded: list[Generation] = []
        self.scored = {expression_digest(s.candidate.expression): s for s in singles}
        self.similarities: dict[str, dict[str, float]] = {}
        self.executions: list[Candidate] = []

    def run(self, similarity: Similarity = lambda expression, name: 0.0) -> Ended:
        """To the end."""
        while isinstance(step := self.step(), Pending):
            self.recorded += step.proposed
            for candidate in self._random.sample(step.candidates, len(step.candidates)):
                self._execute(candidate)
            if step.measure:
                found = {name: similarity(step.measure.expression, name) for name in step.measure.members}
                self.similarities[expression_digest(step.measure.expression)] = found
        return step

    def step(self) -> Pending | Ended:
        """What the records say now."""
        return replay(self._strategy, self._singles, self.recorded, Known(self.scored, self.similarities))

    def _execute(self, candidate: Candidate) -> None:
        self.executions.append(candidate)
        digest = expression_digest(candidate.expression)
        assert digest not in self.scored, "a candidate was scored twice"
        self.scored[digest] = Observed(candidate, self._score(candidate.expression), seconds=1.0, items=10)
