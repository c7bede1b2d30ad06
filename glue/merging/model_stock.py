"""Model Stock: from the base towards the mean of the models, as far as the angle between them says.

Source: arXiv 2403.19522, equations 2 and 3: t = N cos / (1 + (N-1) cos), theta = t mean_i(theta_i) + (1-t) theta_0,
cos the mean cosine between task vectors.
"""

import torch
from torch import Tensor

from glue.merging.blocks import Block, Kernel
from glue.merging.gram import gram, stacked, weighted_sum
from glue.merging.registry import BaseUse, NoParameters, Operands, merge_method
from glue.specs.base import Spec

TINY_NORMS = 1e-6
SINGULAR = 1e-6


class ModelStockOptions(Spec):
    """`filter_wise` finds the angle for every row by itself instead of for the whole tensor."""

    filter_wise: bool = False


@merge_method("model_stock", options=ModelStockOptions, per_input=NoParameters, base=BaseUse.REQUIRED, fewest=2)
def model_stock(operands: Operands[ModelStockOptions, NoParameters]) -> Kernel:
    """t mean_i(x_i) + (1-t) x_0. Where opposed task vectors leave t undefined, the base is kept."""
    if operands.options.filter_wise:
        return _row_by_row(operands)
    t = float(interpolation(gram(operands.inputs, operands.base, operands.grid)))
    count = len(operands.inputs)
    return weighted_sum(operands.inputs, [t / count] * count, operands.base, 1 - t)


def interpolation(products: Tensor) -> Tensor:
    """t from inner products of task vectors, `… x N x N`."""
    count = products.shape[-1]
    lengths = products.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    scale = (lengths.unsqueeze(-1) * lengths.unsqueeze(-2)).clamp(min=TINY_NORMS)
    pairs = torch.triu_indices(count, count, offset=1)
    cosine = (products / scale).clamp(-1, 1)[..., pairs[0], pairs[1]].mean(-1)
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < SINGULAR
    return torch.where(singular, 0, count * cosine / torch.where(singular, 1, denominator))


def _row_by_row(operands: Operands[ModelStockOptions, NoParameters]) -> Kernel:
    base = operands.base
    assert base is not None

    def kernel(block: Block) -> Tensor:
        vectors = stacked(operands.inputs, base, block).transpose(0, 1)
        t = interpolation((vectors @ vectors.transpose(1, 2)).double()).float()
        return vectors.mean(1).mul_(t.unsqueeze(-1)).add_(base.read(block))

    return kernel
