"""The largest values of whole models, found block by block. Knows no method.

Exact, in memory that does not depend on the models: fp32 numbers that are not negative are ordered as their bits are
as integers, so counting the upper halves of the bits brackets the value that is looked for, and counting the lower
halves inside the bracket finds it. Where only some of the values equal to it are wanted, a third pass finds which.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from glue.merging.blocks import Block, Grid
from glue.merging.parallel import Job, run_all
from glue.merging.selection import Cut

Ties = tuple[int | None, ...]
# Adds what is counted in a block's bits, `models x elements`, to a total that is its own meanwhile.
Count = Callable[[Tensor], Tensor]

_HALF = 16
# The sign bit of what is counted is zero.
_UPPER_HALVES = 1 << 15
_LOWER_HALVES = 1 << 16


@dataclass(frozen=True)
class Part:
    """One tensor of several models: `open` gives the reader of its values, a block of them `models x rows x columns`,
    fp32, none negative. It is opened anew in every pass, so that what it must know is not kept for all tensors."""

    grid: Grid
    open: Callable[[], Callable[[Block], Tensor]]


def largest_of_all(
    parts: Sequence[Part], counts: Sequence[int], told: Callable[[str], None] = lambda message: None
) -> list[list[Cut]]:
    """For every tensor and model the cut below the model's `count` largest values over all tensors.

    Of values that are equal to the threshold the first ones belong to the largest, in order of tensors and positions.
    `told` hears of every pass over the values.
    """
    elements = sum(part.grid.elements for part in parts)
    wanted = torch.tensor(counts).clamp(1, elements)
    told("looking for the largest elements of the whole models, pass 1 of 2")
    upper, above = _place(_total(parts, len(counts), _UPPER_HALVES, _upper_halves), wanted)
    told("looking for the largest elements of the whole models, pass 2 of 2")
    halves = _total(parts, len(counts), _LOWER_HALVES, lambda bits: _lower_halves(bits, upper))
    lower, between = _place(halves, wanted - above)
    ties = wanted - above - between
    thresholds = ((upper << _HALF) + lower).to(torch.int32)
    partly = not torch.equal(ties, halves.gather(1, lower.unsqueeze(1)).squeeze(1))
    taken = _first_taken(parts, thresholds, ties.tolist(), told) if partly else _all_taken(parts, len(counts))
    values = thresholds.view(torch.float32).tolist()
    return [
        [_cut(*each, elements) for each in zip(values, by_model, counts, strict=True)]
        for by_model in taken
    ]  # fmt: skip


def _cut(threshold: float, ties: Ties, count: int, elements: int) -> Cut:
    if count <= 0:
        return Cut(float("inf"), (0,) * len(ties))
    return Cut(float("-inf"), (None,) * len(ties)) if count >= elements else Cut(threshold, ties)


def _place(histogram: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """For every model the highest bin from which on there are at least the wanted values, and how many lie above it."""
    from_bin = histogram.flip(1).cumsum(1).flip(1)
    place = (from_bin >= wanted.unsqueeze(1)).sum(1) - 1
    above = from_bin.gather(1, place.unsqueeze(1)) - histogram.gather(1, place.unsqueeze(1))
    return place, above.squeeze(1)


def _total(parts: Sequence[Part], models: int, bins: int, count: Count) -> Tensor:
    """The sum over all blocks of what is counted in their bits, `models x bins`."""
    total, adding = torch.zeros(models, bins, dtype=torch.int64), Lock()

    def look(number: int, block: Block, bits: Tensor) -> None:
        counted = count(bits)
        with adding:
            total.add_(counted)

    _over_all(parts, look)
    return total


def _over_all(parts: Sequence[Part], look: Callable[[int, Block, Tensor], None]) -> None:
    """Let every block be looked at, all threads side by side, in no particular order."""

    def job(number: int, part: Part) -> Job:
        def pieces() -> list[Callable[[], None]]:
            values = part.open()
            return [piece(values, block) for block in part.grid.blocks]

        def piece(values: Callable[[Block], Tensor], block: Block) -> Callable[[], None]:
            return lambda: look(number, block, values(block).flatten(1).view(torch.int32))

        return pieces

    for _ in run_all([job(number, part) for number, part in enumerate(parts)]):
        pass


def _upper_halves(bits: Tensor) -> Tensor:
    return torch.stack([torch.bincount(each, minlength=_UPPER_HALVES) for each in bits >> _HALF])


def _lower_halves(bits: Tensor, upper: Tensor) -> Tensor:
    """How often each lower half occurs in those bits whose upper half is the model's."""
    rows = zip(bits, bits >> _HALF == upper.unsqueeze(1), strict=True)
    kept = [each[inside] & (_LOWER_HALVES - 1) for each, inside in rows]
    return torch.stack([torch.bincount(each, minlength=_LOWER_HALVES) for each in kept])


def _all_taken(parts: Sequence[Part], models: int) -> list[list[Ties]]:
    return [[(None,) * len(part.grid.blocks)] * models for part in parts]


def _first_taken(
    parts: Sequence[Part], thresholds: Tensor, wanted: list[int], told: Callable[[str], None]
) -> list[list[Ties]]:
    """By tensor and model, how many values equal to the threshold are taken of each block: the first ones."""
    told("looking for the largest elements of the whole models, choosing among equal ones")
    equal = [np.zeros((len(wanted), len(part.grid.blocks)), dtype=np.int64) for part in parts]

    def look(number: int, block: Block, bits: Tensor) -> None:
        equal[number][:, block.index] = (bits == thresholds.unsqueeze(1)).sum(1).numpy()

    _over_all(parts, look)
    return [[_allot(counts.tolist(), wanted, model) for model, counts in enumerate(by_model)] for by_model in equal]


def _allot(equal: Sequence[int], left: list[int], model: int) -> Ties:
    """The first of what is equal, as far as `left` has some for the model; what is taken is taken from there."""
    ties: list[int | None] = []
    for count in equal:
        taken = min(count, left[model])
        left[model] -= taken
        ties.append(None if taken == count else taken)
    return tuple(ties)
