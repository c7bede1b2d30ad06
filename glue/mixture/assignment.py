"""Which expert is the best on which item, and which experts are worth keeping. Pure; knows no model."""

from collections.abc import Sequence
from dataclasses import dataclass

from glue.specs.results import SuiteScore

Assignment = tuple[int | None, ...]


@dataclass(frozen=True)
class Selection:
    """The experts that stay, by index, and why each other one does not.

    `assignment` holds for each item of the suite, in its order, an index into `kept`, or none.
    """

    kept: tuple[int, ...]
    left_out: tuple[tuple[int, str], ...]
    assignment: Assignment

    def support(self) -> tuple[int, ...]:
        """For each kept expert the number of items on which it is the best."""
        return tuple(self.assignment.count(place) for place in range(len(self.kept)))


def best_experts(scores: Sequence[SuiteScore]) -> Assignment:
    """For each item the index of the expert with the highest value; none where no value is above zero.

    `scores` holds one score on the same suite for each expert. Ties go to the expert with the higher mean on
    the item's task, then to the earlier one.

    Raises:
        ValueError: the scores are not of the same items.
    """
    layouts = {tuple((task.task, len(task.values)) for task in score.tasks) for score in scores}
    if len(layouts) > 1:
        raise ValueError("experts can only be compared on the same items")
    best: list[int | None] = []
    for tasks in zip(*(score.tasks for score in scores), strict=True):
        for values in zip(*(task.values for task in tasks), strict=True):
            ranks = [(value, task.mean, -index) for index, (value, task) in enumerate(zip(values, tasks, strict=True))]
            value, _, place = max(ranks)
            best.append(-place if value > 0 else None)
    return tuple(best)


def select_experts(scores: Sequence[SuiteScore], minimum_share: float) -> Selection:
    """Leave out experts that are the best on too few of the assigned items: a prototype of them would be noise.

    The expert with the fewest items goes first (of equals the last), its items fall to the others, and so on
    until each one left is the best on at least one item and on `minimum_share` of those that have a best.
    """
    kept = list(range(len(scores)))
    left_out: list[tuple[int, str]] = []
    assignment: Assignment = best_experts(scores)
    while kept:
        counts = [assignment.count(place) for place in range(len(kept))]
        total = sum(counts)
        fewest = min(range(len(kept)), key=lambda place: (counts[place], -place))
        if counts[fewest] > 0 and counts[fewest] >= minimum_share * total:
            break
        left_out.append((kept.pop(fewest), _reason(counts[fewest], total, minimum_share)))
        assignment = best_experts([scores[index] for index in kept]) if kept else (None,) * len(assignment)
    return Selection(tuple(kept), tuple(sorted(left_out)), assignment)


def _reason(count: int, total: int, minimum_share: float) -> str:
    if count == 0:
        return "the best on no proxy item"
    return f"the best on {count} of {total} proxy items, fewer than the minimum share of {minimum_share:g}"
