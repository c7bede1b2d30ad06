"""Ways to keep only a part of a task vector: the largest elements, a band of magnitudes, or a random choice.

Knows no particular method. Every way gives None where all is kept, so that nothing is computed for it.
"""

from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from glue.merging.blocks import Block, Grid, Source
from glue.merging.registry import Operands
from glue.merging.selection import largest
from glue.merging.task_vectors import TaskVectorOptions, Thin, Thinned, task_vector
from glue.merging.uniform import uniform
from glue.specs.errors import InvalidInputError

TINY_NORM = 1e-7

Each = TypeVar("Each", bound=Thinned)
Read = Callable[[Block], Tensor]
Choose = Callable[[Source, Read, Each], Thin | None]


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
    thins = []
    for source, parameters in zip(operands.inputs, operands.each, strict=True):
        read = task_vector(source, base)
        thin = choose(source, read, parameters)
        thins.append(_with_norm(thin, read, operands.grid) if keep_norm and thin is not None else thin)
    return thins


def keep_largest(read: Read, grid: Grid, density: float) -> Thin | None:
    """Keep exactly floor(density x elements) elements of largest magnitude, at least one if any is to be kept."""
    if density >= 1:
        return None
    count = max(1, int(density * grid.elements)) if density > 0 else 0
    cut = largest(_magnitudes(read), grid, count)
    return lambda block, delta: delta.mul_(cut.mask(block, delta.abs()))


def keep_band(read: Read, grid: Grid, density: float, gamma: float) -> Thin | None:
    """Drop the share `gamma` of largest magnitude, then the smallest until floor(density x elements) are left."""
    if density >= 1:
        return None
    kept, top = int(density * grid.elements), int(gamma * grid.elements)
    smallest = max(0, grid.elements - kept - top)
    outer = largest(_magnitudes(read), grid, grid.elements - smallest)
    inner = largest(_magnitudes(read), grid, grid.elements - smallest - kept)

    def thin(block: Block, delta: Tensor) -> Tensor:
        magnitudes = delta.abs()
        return delta.mul_(outer.mask(block, magnitudes).sub_(inner.mask(block, magnitudes)))

    return thin


def keep_at_random(draw: Read, density: float, *, divide: bool) -> Thin | None:
    """Keep every element with probability `density`, independently; `divide` divides the kept by it."""
    if density >= 1:
        return None
    factor = 1 / density if divide else 1.0

    def thin(block: Block, delta: Tensor) -> Tensor:
        numbers = draw(block)
        return delta.mul_(torch.lt(numbers, density, out=numbers)).mul_(factor)

    return thin


def keep_by_rank(draw: Read, density: float, epsilon: float, *, divide: bool) -> Thin | None:
    """Keep elements with a probability that grows with the rank of their magnitude in the row, from
    density - epsilon to density + epsilon; `divide` divides the kept by it.

    Raises:
        InvalidInputError: the probabilities leave the open interval from 0 to 1.
    """
    if density >= 1:
        return None
    if density <= 0:
        return lambda block, delta: delta.zero_()
    if density + epsilon >= 1 or density - epsilon <= 0:
        raise InvalidInputError(f"density {density} with epsilon {epsilon}: density ± epsilon must lie between 0 and 1")

    def thin(block: Block, delta: Tensor) -> Tensor:
        probability = ranks(delta.abs()).mul_(2 * epsilon).add_(density - epsilon)
        numbers = draw(block)
        kept = delta.mul_(torch.lt(numbers, probability, out=numbers))
        return kept.div_(probability) if divide else kept

    return thin


def ranks(magnitudes: Tensor) -> Tensor:
    """The rank of every element in its row, from 0 for the smallest to 1, fp32; 1/2 where a row has one element."""
    rows, columns = magnitudes.shape
    if columns == 1:
        return torch.full_like(magnitudes, 0.5)
    order = np.argsort(magnitudes.numpy(), axis=1, kind="stable")
    places = np.empty((rows, columns), dtype=np.float32)
    steps = np.arange(columns, dtype=np.float32) / np.float32(columns - 1)
    np.put_along_axis(places, order, np.broadcast_to(steps, (rows, columns)), axis=1)
    return torch.from_numpy(places)


def drawer(seed: int, source: Source, tensor: str, grid: Grid) -> Read:
    """The reader of the random numbers of one model's tensor."""
    return lambda block: uniform(seed, source.key, tensor, block, grid.columns)


def _magnitudes(read: Read) -> Read:
    return lambda block: read(block).abs_()


def _with_norm(thin: Thin, read: Read, grid: Grid) -> Thin:
    before = after = 0.0
    for block in grid.blocks:
        delta = read(block)
        before += _l1(delta)
        after += _l1(thin(block, delta))
    if before < TINY_NORM or after < TINY_NORM:
        return thin
    factor = before / after
    return lambda block, delta: thin(block, delta).mul_(factor)


def _l1(delta: Tensor) -> float:
    return float(delta.abs().sum())
