"""SCE: select the elements on which the models vary most, weigh models by their energy there, erase minorities.

Source: FuseChat (arXiv 2408.07990), section 3.3, as in mergekit: selection by variance over the task vectors,
weights in proportion to the mean square of each selected task vector, signs elected as in TIES.
"""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from glue.merging.blocks import Block, Kernel
from glue.merging.gram import stacked
from glue.merging.registry import BaseUse, NoParameters, Operands, merge_method
from glue.merging.selection import Cut, largest
from glue.specs.base import Number, Spec

NO_ENERGY = 1e-6
SMALLEST_DIVISOR = 1e-6


class SceOptions(Spec):
    """`select_topk` is the share of the elements with any variance that is merged. `int8_mask` changes nothing."""

    select_topk: Number = Field(default=1.0, ge=0, le=1)
    int8_mask: bool = False


@merge_method("sce", options=SceOptions, per_input=NoParameters, base=BaseUse.REQUIRED)
def sce(operands: Operands[SceOptions, NoParameters]) -> Kernel:
    """x_0 + the energy-weighted mean of selected task vectors over those whose sign wins."""
    base = operands.base
    assert base is not None
    selected = _selected(operands)
    weights = _energies(operands, selected)

    def kernel(block: Block) -> Tensor:
        deltas = selected(block)
        majority = torch.ge(deltas.sum(0), 0).float().mul_(2).sub_(1)
        share = torch.eq(deltas.sign(), majority).float().mul_(weights)
        merged = (deltas * share).sum(0).div_(share.sum(0).clamp_(min=SMALLEST_DIVISOR))
        return merged.add_(base.read(block))

    return kernel


def _selected(operands: Operands[SceOptions, NoParameters]) -> Callable[[Block], Tensor]:
    """The reader of all task vectors, `inputs x rows x columns`, zero where nothing is selected."""

    def deltas(block: Block) -> Tensor:
        return stacked(operands.inputs, operands.base, block)

    cut = _cut(operands, deltas)
    if cut is None:
        return deltas

    def selected(block: Block) -> Tensor:
        vectors = deltas(block)
        return vectors.mul_(cut.mask(block, _variance(vectors)))

    return selected


def _cut(operands: Operands[SceOptions, NoParameters], deltas: Callable[[Block], Tensor]) -> Cut | None:
    share, grid = operands.options.select_topk, operands.grid
    if share >= 1:
        return None
    varying = sum(int(torch.count_nonzero(_variance(deltas(block)))) for block in grid.blocks)
    return largest(lambda block: _variance(deltas(block)), grid, int(varying * share))


def _variance(vectors: Tensor) -> Tensor:
    return vectors.var(dim=0, unbiased=False)


def _energies(operands: Operands[SceOptions, NoParameters], selected: Callable[[Block], Tensor]) -> Tensor:
    """The models' weights, `inputs x 1 x 1`, fp32."""
    count = len(operands.inputs)
    squares = torch.zeros(count, dtype=torch.float64)
    for block in operands.grid.blocks:
        squares += selected(block).square().sum(dim=(1, 2)).double()
    means = squares / max(1, operands.grid.elements)
    total = means.sum()
    shares = means / total if total >= NO_ENERGY else torch.full_like(means, 1 / count)
    return shares.float().view(count, 1, 1)
