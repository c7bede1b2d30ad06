"""Arcee Fusion: the base, with the other model's weights where they matter most.

Source: mergekit's `arcee_fusion`: the importance of an element is |difference| times the divergence KL(softmax of
the row of the other model || of the base); what is at least median + 1.5 (third - first quartile) is taken over.
Quartiles here are exact at every size; mergekit samples a million elements of larger tensors.
"""

import torch
from torch import Tensor

from glue.merging.blocks import Block, Kernel, Source
from glue.merging.registry import BaseUse, NoParameters, Operands, merge_method
from glue.merging.selection import value_at

SMALLEST_SHARE = 1e-8
REACH = 1.5


@merge_method("arcee_fusion", options=NoParameters, per_input=NoParameters, base=BaseUse.REQUIRED, most=1)
def arcee_fusion(operands: Operands[NoParameters, NoParameters]) -> Kernel:
    """x where its importance reaches the threshold, else x_0."""
    base, (source,) = operands.base, operands.inputs
    assert base is not None
    last = operands.grid.elements - 1
    first, middle, third = (
        value_at(lambda block: _importance(source, base, block), operands.grid, int(share * last))
        for share in (0.25, 0.5, 0.75)
    )
    threshold = middle + REACH * (third - first)

    def kernel(block: Block) -> Tensor:
        taken = torch.ge(_importance(source, base, block), threshold)
        return torch.where(taken, source.read(block), base.read(block))

    return kernel


def _importance(source: Source, base: Source, block: Block) -> Tensor:
    other, origin = source.read(block), base.read(block)
    p = torch.softmax(other, dim=-1).add_(SMALLEST_SHARE)
    q = torch.softmax(origin, dim=-1).add_(SMALLEST_SHARE)
    divergence = p.mul_(torch.log(p / q)).sum(-1, keepdim=True)
    return other.sub_(origin).abs_().mul_(divergence)
