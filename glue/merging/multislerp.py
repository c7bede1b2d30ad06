"""Multi-SLERP: the weighted mean of directions on the sphere, with the weighted mean of the lengths.

Source: mergekit's `multislerp` (C. Goddard, "Multi-SLERP"): the directions are projected onto the tangent
space at their normalised weighted mean, averaged there and projected back.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from glue.merging.blocks import Block, Kernel, Source
from glue.merging.gram import gram, weighted_sum
from glue.merging.linear import Weighted, normalized
from glue.merging.registry import BaseUse, Operands, merge_method
from glue.specs.base import Number, Spec
from glue.specs.errors import InvalidInputError


class MultislerpOptions(Spec):
    """`normalize_weights` divides by their sum; `eps` guards divisions."""

    normalize_weights: bool = True
    eps: Number = 1e-8


@merge_method("multislerp", options=MultislerpOptions, per_input=Weighted, base=BaseUse.OPTIONAL)
def multislerp(operands: Operands[MultislerpOptions, Weighted]) -> Kernel:
    """The mean on the sphere around the base, or around zero.

    Raises:
        InvalidInputError: directions and weights cancel, so there is no mean.
    """
    inputs, options = operands.inputs, operands.options
    if len(inputs) == 1:
        return weighted_sum(inputs, [1.0], None, 0)
    weights = [parameters.weight for parameters in operands.each]
    if options.normalize_weights:
        weights = normalized(weights)
    products = gram(inputs, operands.base, operands.grid)
    coefficients = sphere_coefficients(products, torch.tensor(weights, dtype=torch.float64), options.eps)
    if operands.base is None:
        return weighted_sum(inputs, coefficients.tolist(), None, 0)
    return _around(operands.base, inputs, coefficients.tolist())


def _around(base: Source, inputs: Sequence[Source], coefficients: Sequence[float]) -> Kernel:
    """The base plus the sum of the task vectors: a short one has a large coefficient, which rounding must not meet."""

    def kernel(block: Block) -> Tensor:
        origin = base.read(block)
        result = torch.zeros_like(origin)
        for source, coefficient in zip(inputs, coefficients, strict=True):
            result.add_(source.read(block).sub_(origin), alpha=coefficient)
        return result.add_(origin)

    return kernel


def sphere_coefficients(products: Tensor, weights: Tensor, eps: float) -> Tensor:
    """The result as coefficients of the vectors whose inner products are given, all in fp64.

    Raises:
        InvalidInputError: the weighted directions cancel.
    """
    lengths = products.diagonal().clamp(min=0).sqrt()
    to_units = 1 / (lengths + eps)
    cosines = products * to_units.unsqueeze(0) * to_units.unsqueeze(1)
    mean_length = float((weights @ cosines @ weights).clamp(min=0).sqrt())
    if mean_length < eps:
        # Two opposite directions, or tensors that the models left as the base has them.
        if len(weights) == 2 or not lengths.any():
            return weights
        raise InvalidInputError("multislerp: the weighted directions cancel; change the weights")
    # From here on everything is a combination of the unit vectors; `mean` and `tangent` are its coefficients.
    mean = weights / mean_length
    towards = cosines @ mean
    tangent = weights - (weights @ towards) * mean
    step = float((tangent @ cosines @ tangent).clamp(min=0).sqrt()) + eps
    arrived = mean * torch.cos(torch.tensor(step)) + tangent * (torch.sin(torch.tensor(step)) / step)
    return arrived * (lengths @ weights) * to_units
