"""Ways to keep only a part of a task vector: the largest elements, a band of magnitudes, or a random choice.

Knows no particular method. All of them look at magnitudes only. Every way gives None where all is kept, so that
nothing is computed for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from glue.merging.blocks import Block, Grid, Source
from glue.merging.registry import Operands
from glue.merging.selection import Cut, largest
from glue.merging.task_vectors import TaskVectorOptions, Thin, Thinned, task_vector
from glue.merging.uniform import Stream
from glue.specs.errors import InvalidInputError

TINY_NORM = 1e-7

Each = TypeVar("Each", bound=Thinned)
Read = Callable[[Block], Tensor]
Choose = Callable[[Source, Read, Each], Thin | None]
# Which elements of a block of a task vector, or of its magnitudes, are kept: rows x columns.
Keep = Callable[[Block, Tensor], NDArray[np.bool_]]


@dataclass(frozen=True)
class Mask:
    """Elements are kept or dropped; what is left is to be scaled by `scale`."""

    keep: Keep
    scale: float = 1.0

    def apply(self, block: Block, delta: Tensor) -> Tensor:
        """Set what is dropped to zero, in place."""
        return delta.mul_(_as_factor(self.keep(block, delta)))


@dataclass(frozen=True)
class Shares:
    """Elements are multiplied by factors of their own."""

    factors: Callable[[Block, Tensor], Tensor]
    scale: float = 1.0

    def apply(self, block: Block, delta: Tensor) -> Tensor:
        """Multiply a block of the task vector in place."""
        return delta.mul_(self.factors(block, delta))


class RescaledOptions(TaskVectorOptions):
    """`rescale` scales each thinned task vector until its L1 norm is that of the whole one, tensor by tensor."""

    rescale: bool = False


class RandomOptions(TaskVectorOptions):
    """Of methods that drop elements at random.

    `rescale` makes up for what was dropped: by `norm`, the tensor's L1 norm is kept exactly (mergekit's way);
    by `probability`, every kept element is divided by the probability of its being kept (the papers' way, whose
    mean over seeds is the whole task vector). `seed` chooses the masks.
    """

    rescale: bool = True
    rescale_by: Literal["norm", "probability"] = "norm"
    seed: int = Field(default=0, ge=0, lt=2**64)


def thinned(operands: Operands[TaskVectorOptions, Each], choose: Choose[Each], *, keep_norm: bool) -> list[Thin | None]:
    """The thinning of every input, rescaled to the norm of the whole where `keep_norm` is set."""
    base = operands.base
    assert base is not None
    thins = [
        choose(source, task_vector(source, base), parameters)
        for source, parameters in zip(operands.inputs, operands.each, strict=True)
    ]
    return _with_norms(thins, operands.inputs, base, operands.grid) if keep_norm else thins


def keep_largest(read: Read, grid: Grid, density: float) -> Thin | None:
    """Keep exactly floor(density x elements) elements of largest magnitude, at least one if any is to be kept."""
    if density >= 1:
        return None
    return keep_above(largest(_magnitudes(read), grid, kept_count(density, grid.elements)))


def kept_count(density: float, elements: int) -> int:
    """How many elements the share `density` of them is: rounded down, but at least one if any is to be kept."""
    return max(1, int(density * elements)) if density > 0 else 0


def keep_above(cut: Cut) -> Mask:
    """Keep the elements whose magnitude lies above the cut."""
    return Mask(lambda block, delta: cut.keep(block, delta.abs()))


def keep_band(read: Read, grid: Grid, density: float, gamma: float) -> Thin | None:
    """Drop the share `gamma` of largest magnitude, then the smallest until floor(density x elements) are left."""
    if density >= 1:
        return None
    kept, top = int(density * grid.elements), int(gamma * grid.elements)
    smallest = max(0, grid.elements - kept - top)
    outer = largest(_magnitudes(read), grid, grid.elements - smallest)
    inner = largest(_magnitudes(read), grid, grid.elements - smallest - kept)

    def keep(block: Block, delta: Tensor) -> NDArray[np.bool_]:
        magnitudes = delta.abs()
        return outer.keep(block, magnitudes) & ~inner.keep(block, magnitudes)

    return Mask(keep)


def keep_at_random(stream: Stream, grid: Grid, density: float, *, divide: bool) -> Thin | None:
    """Keep every element with probability `density`, independently; `divide` divides the kept by it."""
    if density >= 1:
        return None

    def keep(block: Block, delta: Tensor) -> NDArray[np.bool_]:
        return stream.below(density, *grid.span(block)).reshape(delta.shape)

    return Mask(keep, 1 / density if divide else 1.0)


def keep_by_rank(stream: Stream, grid: Grid, density: float, epsilon: float, *, divide: bool) -> Thin | None:
    """Keep elements with a probability that grows with the rank of their magnitude in the row, from
    density - epsilon to density + epsilon; `divide` divides the kept by it.

    Raises:
        InvalidInputError: the probabilities leave the open interval from 0 to 1.
    """
    if density >= 1:
        return None
    if density <= 0:
        return Mask(lambda block, delta: np.zeros(delta.shape, dtype=np.bool_))
    if density + epsilon >= 1 or density - epsilon <= 0:
        raise InvalidInputError(f"density {density} with epsilon {epsilon}: density ± epsilon must lie between 0 and 1")

    def chances(delta: Tensor) -> Tensor:
        return ranks(delta.abs()).mul_(2 * epsilon).add_(density - epsilon)

    def drawn(block: Block, probability: Tensor) -> NDArray[np.bool_]:
        start, _ = grid.span(block)
        return stream.below_each(probability.numpy().ravel(), start).reshape(probability.shape)

    def factors(block: Block, delta: Tensor) -> Tensor:
        probability = chances(delta)
        return _as_factor(drawn(block, probability)).div_(probability)

    return Shares(factors) if divide else Mask(lambda block, delta: drawn(block, chances(delta)))


def ranks(magnitudes: Tensor) -> Tensor:
    """The rank of every element in its row, from 0 for the smallest to 1, fp32; equal ones in order of position.

    A row of one element has rank 1/2.
    """
    rows, columns = magnitudes.shape
    if columns == 1:
        return torch.full_like(magnitudes, 0.5)
    # Bits of floating-point numbers that are not negative sort as the numbers do; the column below makes keys unique.
    keys = magnitudes.numpy().view(np.uint32).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(columns, dtype=np.uint64)
    keys.sort(axis=1)
    keys &= np.uint64(2**32 - 1)
    keys += np.arange(rows, dtype=np.uint64)[:, None] * np.uint64(columns)
    places = torch.arange(columns, dtype=torch.float32).div_(columns - 1).repeat(rows)
    order = torch.from_numpy(keys.view(np.int64).ravel())
    return torch.empty(rows * columns).scatter_(0, order, places).view(rows, columns)


def _magnitudes(read: Read) -> Read:
    return lambda block: read(block).abs_()


def _as_factor(kept: NDArray[np.bool_]) -> Tensor:
    # Bytes are converted at several times the speed of booleans.
    return torch.from_numpy(kept.view(np.uint8)).to(torch.float32)


def _with_norms(thins: Sequence[Thin | None], sources: Sequence[Source], base: Source, grid: Grid) -> list[Thin | None]:
    """The masks with the scales that give each task vector its L1 norm back, found in one pass over all of them."""
    remembered = {place: Remembered(thin.keep) for place, thin in enumerate(thins) if isinstance(thin, Mask)}
    for block in grid.blocks if remembered else ():
        origin = base.read(block)
        for place, mask in remembered.items():
            mask.look(block, sources[place].read(block).sub_(origin).abs_())
    return [
        replace(thin, keep=remembered[place].keep, scale=thin.scale * remembered[place].scale)
        if isinstance(thin, Mask)
        else thin
        for place, thin in enumerate(thins)
    ]


class Remembered:
    """A mask that is found out once for every block and kept as bits, with the norms before and after."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._bits: dict[int, NDArray[np.uint8]] = {}
        self._before = self._after = 0.0

    def look(self, block: Block, magnitudes: Tensor) -> None:
        """Find out what is kept of a block."""
        kept = self._keep(block, magnitudes)
        self._bits[block.index] = np.packbits(kept)
        self._before += float(magnitudes.sum())
        self._after += float(torch.dot(magnitudes.view(-1), _as_factor(kept).view(-1)))

    def keep(self, block: Block, delta: Tensor) -> NDArray[np.bool_]:
        """What was found out."""
        bits = np.unpackbits(self._bits[block.index], count=delta.numel())
        return bits.view(np.bool_).reshape(delta.shape)

    @property
    def scale(self) -> float:
        """The norm before by the norm after; 1 where there is none."""
        return 1.0 if min(self._before, self._after) < TINY_NORM else self._before / self._after
