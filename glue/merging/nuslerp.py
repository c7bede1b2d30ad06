"""NuSLERP: SLERP of models or of task vectors, over whole tensors, rows or columns, with weights.

Source: mergekit's `nuslerp`. The way is t = w_2 / (w_1 + w_2); with a base it is walked between task vectors.
"""

import math

import torch
from torch import Tensor

from glue.merging.blocks import Block, Kernel
from glue.merging.gram import differences, gram, weighted_sum
from glue.merging.linear import Weighted
from glue.merging.registry import BaseUse, Operands, merge_method
from glue.merging.slerp import arc_weights
from glue.specs.base import Spec

TINY_NORM = 1e-7
TINY_SINE = 1e-8


class NuslerpOptions(Spec):
    """`nuslerp_flatten` takes a tensor as one vector; without it every row is one, or, with `nuslerp_row_wise`,
    every slice along the first dimension (mergekit's names, which say it the other way round).
    """

    nuslerp_flatten: bool = True
    nuslerp_row_wise: bool = False


@merge_method("nuslerp", options=NuslerpOptions, per_input=Weighted, base=BaseUse.OPTIONAL, fewest=2, most=2)
def nuslerp(operands: Operands[NuslerpOptions, Weighted]) -> Kernel:
    """The arc from the first to the second input at t = w_2 / (w_1 + w_2), or at the middle where they cancel."""
    first, second = (parameters.weight for parameters in operands.each)
    t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
    if operands.options.nuslerp_flatten:
        return _whole(operands, t)
    # Along the first dimension a vector is one slice, as along its last.
    if operands.options.nuslerp_row_wise and len(operands.grid.shape) > 1:
        return _columns(operands, t)
    return _rows(operands, t)


def _whole(operands: Operands[NuslerpOptions, Weighted], t: float) -> Kernel:
    products = gram(operands.inputs, operands.base, operands.grid)
    scale = math.prod(max(math.sqrt(float(products[i, i])), TINY_NORM) for i in range(2))
    cosine = max(-1.0, min(1.0, float(products[0, 1]) / scale))
    weights = arc_weights(t, cosine, math.sqrt(1 - TINY_SINE**2))
    return weighted_sum(operands.inputs, weights, operands.base, 1 - sum(weights))


def _rows(operands: Operands[NuslerpOptions, Weighted], t: float) -> Kernel:
    left, right = differences(operands.inputs, operands.base)

    def kernel(block: Block) -> Tensor:
        a, b = left(block), right(block)
        squares = torch.stack([(a * a).sum(-1), (b * b).sum(-1), (a * b).sum(-1)])
        weights = _arc_weights(squares, t)
        result = a.mul_(weights[0].unsqueeze(-1)).add_(b.mul_(weights[1].unsqueeze(-1)))
        return result if operands.base is None else result.add_(operands.base.read(block))

    return kernel


def _columns(operands: Operands[NuslerpOptions, Weighted], t: float) -> Kernel:
    grid = operands.grid
    inner = grid.rows // grid.shape[0]
    left, right = differences(operands.inputs, operands.base)
    squares = torch.zeros(3, inner, grid.columns, dtype=torch.float64)
    for block in grid.blocks:
        a, b = left(block).double(), right(block).double()
        place = torch.arange(block.start, block.stop) % inner
        for total, product in zip(squares, (a * a, b * b, a * b), strict=True):
            total.index_add_(0, place, product)
    weights = _arc_weights(squares, t).float()

    def kernel(block: Block) -> Tensor:
        place = torch.arange(block.start, block.stop) % inner
        result = left(block).mul_(weights[0][place]).add_(right(block).mul_(weights[1][place]))
        return result if operands.base is None else result.add_(operands.base.read(block))

    return kernel


def _arc_weights(squares: Tensor, t: float) -> Tensor:
    """Coefficients `2 x vectors` from |a|^2, |b|^2 and ab of many pairs, `3 x vectors`."""
    left, right, product = squares.double()
    scale = left.sqrt().clamp(min=TINY_NORM) * right.sqrt().clamp(min=TINY_NORM)
    cosine = (product / scale).clamp(-1, 1)
    parallel = 1 - cosine.square() <= TINY_SINE**2
    angle = torch.acos(torch.where(parallel, 0, cosine))
    weights = [torch.sin((1 - t) * angle) / torch.sin(angle), torch.sin(t * angle) / torch.sin(angle)]
    straight = (1 - t, t)
    return torch.stack([torch.where(parallel, line, arc) for line, arc in zip(straight, weights, strict=True)]).to(
        squares.dtype
    )
