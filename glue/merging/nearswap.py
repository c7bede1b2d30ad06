"""NearSwap: the base, swapped for the other model where the two nearly agree.

Source: mergekit's `nearswap` (alchemonaut/QuartetAnemoi-70B-t0.0001): w b + (1-w) a, w = t / |a-b| within [0, 1].
"""

import torch
from torch import Tensor

from glue.merging.blocks import Block, Kernel
from glue.merging.registry import BaseUse, NoParameters, Operands, merge_method
from glue.specs.base import Number, Spec

SMALLEST_DIFFERENCE = 1e-6


class NearswapOptions(Spec):
    """`t` is the difference below which a weight is swapped."""

    t: Number


@merge_method("nearswap", options=NearswapOptions, per_input=NoParameters, base=BaseUse.REQUIRED, most=1)
def nearswap(operands: Operands[NearswapOptions, NoParameters]) -> Kernel:
    """w x + (1-w) x_0, w = t / |x - x_0| within [0, 1]."""
    base, (source,), t = operands.base, operands.inputs, operands.options.t
    assert base is not None

    def kernel(block: Block) -> Tensor:
        kept, other = base.read(block), source.read(block)
        share = torch.sub(other, kept).abs_().clamp_(min=SMALLEST_DIFFERENCE).reciprocal_().mul_(t).clamp_(0, 1)
        # Written so that a share of one gives the other model's very bits.
        return kept.mul_(1 - share).add_(other.mul_(share))

    return kernel
