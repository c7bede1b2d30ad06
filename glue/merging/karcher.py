"""Karcher mean: the point on the sphere whose geodesics to all directions balance, with the mean length.

Source: Karcher (1977); mergekit's `karcher` (arXiv 2603.04972), whose iteration this follows: every model
counts alike, tensors without length are left out.
"""

import torch
from torch import Tensor

from glue.merging.blocks import Kernel
from glue.merging.gram import gram, weighted_sum
from glue.merging.registry import BaseUse, NoParameters, Operands, merge_method
from glue.specs.base import Number, Spec


class KarcherOptions(Spec):
    """The iteration ends after `max_iter` steps, or when the mean tangent is shorter than `tol`."""

    max_iter: int = 10
    tol: Number = 1e-5


@merge_method("karcher", options=KarcherOptions, per_input=NoParameters, base=BaseUse.NONE)
def karcher(operands: Operands[KarcherOptions, NoParameters]) -> Kernel:
    """The mean direction times the mean length."""
    if len(operands.inputs) == 1:
        return weighted_sum(operands.inputs, [1.0], None, 0)
    products = gram(operands.inputs, None, operands.grid)
    coefficients = karcher_coefficients(products, operands.options.max_iter, operands.options.tol)
    return weighted_sum(operands.inputs, coefficients.tolist(), None, 0)


def karcher_coefficients(products: Tensor, max_iter: int, tol: float) -> Tensor:
    """The result as coefficients of the vectors whose inner products are given, all in fp64."""
    lengths = products.diagonal().clamp(min=0).sqrt()
    valid = lengths > tol
    if not valid.any():
        return torch.zeros_like(lengths)
    shares = valid.double() / valid.sum()
    to_units = torch.where(valid, 1 / lengths.clamp(min=1e-300), 0)
    cosines = products * to_units.unsqueeze(0) * to_units.unsqueeze(1)
    mean = _start(shares, cosines, tol)
    for _ in range(max_iter):
        tangent = _tangent(mean, shares, cosines, tol)
        length = _length(tangent, cosines)
        if length < tol:
            break
        mean = torch.cos(length) * mean + torch.sin(length) * tangent / length
        mean = mean / _length(mean, cosines).clamp(min=tol)
    return mean * to_units * lengths.mean()


def _start(shares: Tensor, cosines: Tensor, tol: float) -> Tensor:
    length = _length(shares, cosines)
    if length >= tol:
        return shares / length
    first = torch.zeros_like(shares)
    first[int(shares.argmax())] = 1
    return first


def _tangent(mean: Tensor, shares: Tensor, cosines: Tensor, tol: float) -> Tensor:
    towards = (cosines @ mean).clamp(-1, 1)
    angles = torch.arccos(towards)
    pulls = torch.where(angles < tol, 0, shares * angles / torch.sin(angles).clamp(min=1e-300))
    return pulls - (pulls @ towards) * mean


def _length(coefficients: Tensor, cosines: Tensor) -> Tensor:
    return (coefficients @ cosines @ coefficients).clamp(min=0).sqrt()
