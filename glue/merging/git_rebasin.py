"""Git Re-Basin: every further model is brought into the order of the first one's units, then all are averaged.

Source: arXiv 2209.04836. Models that were trained apart compute alike with their units in other places; weight
matching finds the places from the weights alone. Of a permuted copy of the first model nothing but the first is left.
"""

from collections.abc import Callable, Sequence
from threading import Lock

import torch
from torch import Tensor

from glue.merging.blocks import Block, Grid, Kernel, Source
from glue.merging.gram import weighted_sum
from glue.merging.linear import LinearOptions, Weighted, normalized
from glue.merging.registry import BaseUse, Operands, Survey, Whole, surveying_method
from glue.merging.symmetries import Axes, Orders, Symmetries, reordered, symmetries_of
from glue.merging.weight_matching import Pair, match, whole


class Permuted:
    """An operand with its rows and columns in another order.

    Rows that change places are read all at once, when the first block is asked for; so a tensor of a layer is in
    memory while it is merged, an embedding never.
    """

    def __init__(self, source: Source, grid: Grid, axes: Axes, orders: Orders) -> None:
        self.key = source.key
        self._source, self._grid, self._axes, self._orders = source, grid, axes, orders
        self._moved = any(axis is not None and axis in orders for axis in axes[: max(1, len(axes) - 1)])
        self._whole: Tensor | None = None
        self._reading = Lock()

    def read(self, block: Block) -> Tensor:
        """The block in fp32."""
        if self._moved:
            return self._all()[block.start : block.stop].clone()
        return reordered(self._source.read(block), self._axes, self._orders)

    def _all(self) -> Tensor:
        with self._reading:
            if self._whole is None:
                value = reordered(whole(self._source, self._grid), self._axes, self._orders)
                self._whole = value.reshape(self._grid.rows, self._grid.columns)
            return self._whole


class Aligned:
    """What the survey finds: what may be permuted, and the orders of every model after the first."""

    def __init__(self, symmetries: Symmetries, orders: Sequence[Orders]) -> None:
        self._symmetries = symmetries
        self._orders = [_changed(each) for each in orders]

    def inputs(self, operands: Operands[LinearOptions, Weighted]) -> list[Source]:
        """The operands, all in the order of the first."""
        axes = self._symmetries.axes[operands.tensor]
        first, *others = operands.inputs
        return [first, *(_permuted(*each, operands.grid, axes) for each in zip(others, self._orders, strict=True))]


def _permuted(source: Source, orders: Orders, grid: Grid, axes: Axes) -> Source:
    return Permuted(source, grid, axes, orders) if any(axis in orders for axis in axes) else source


def _changed(orders: Orders) -> Orders:
    return {axis: order for axis, order in orders.items() if not torch.equal(order, torch.arange(len(order)))}


def align(merge: Whole[LinearOptions, Weighted]) -> Aligned:
    """The orders in which each further model is most like the first.

    Raises:
        IncompatibleModelsError: what may be permuted in the models is not known.
    """
    symmetries = symmetries_of(merge.tensors, merge.config)
    others = range(1, len(next(iter(merge.each.values()))))

    def pair(other: int) -> Pair:
        def opened(name: str) -> tuple[Source, Source]:
            inputs = merge.operands(name).inputs
            return inputs[0], inputs[other]

        return Pair(merge.tensors, symmetries, opened)

    def told(other: int) -> Callable[[str], None]:
        return lambda message: merge.told(f"model {other + 1} of {len(others) + 1}: {message}")

    return Aligned(symmetries, [match(pair(other), told(other)).orders() for other in others])


def _check(merge: Whole[LinearOptions, Weighted]) -> None:
    symmetries_of(merge.tensors, merge.config)


@surveying_method(
    "git_rebasin", survey=Survey(align, check=_check), options=LinearOptions, per_input=Weighted, base=BaseUse.NONE
)
def git_rebasin(operands: Operands[LinearOptions, Weighted], found: Aligned | None) -> Kernel:
    """sum_i w_i pi_i(x_i), divided by sum_i w_i where `normalize` is set; pi_1 changes nothing.

    Raises:
        InvalidInputError: the weights to be normalised sum to zero.
    """
    assert found is not None
    weights = [parameters.weight for parameters in operands.each]
    if operands.options.normalize:
        weights = normalized(weights)
    return weighted_sum(found.inputs(operands), weights, None, 0)
