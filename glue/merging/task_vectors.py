"""Merging by task vectors: thin each, weigh, agree on signs or not, add to the base. Knows no particular method.

The family of Task Arithmetic (arXiv 2212.04089): tau_i = theta_i - theta_0, theta = theta_0 + lambda sum_i w_i tau_i.
Its members differ in how a task vector is thinned before it is weighed, and in whether the models vote on the
sign of every element first (TIES, arXiv 2306.01708).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor

from glue.merging.blocks import Block, Kernel, Source
from glue.merging.gram import weighted_sum
from glue.merging.linear import Weighted
from glue.merging.registry import Operands
from glue.specs.base import Number, Spec

NO_WEIGHT = 1e-8


class Thin(Protocol):
    """What is done to a task vector before it is weighed: something in place, and then a scale."""

    @property
    def scale(self) -> float:
        """What every element is to be multiplied by afterwards."""

    def apply(self, block: Block, delta: Tensor) -> Tensor:
        """Thin a block of the task vector in place."""


class TaskVectorOptions(Spec):
    """`lambda` scales the sum of the task vectors, `normalize` divides it by the sum of the weights that count.

    `int8_mask` is accepted for mergekit's files and changes nothing: masks are never stored here.
    """

    lambda_: Number = Field(default=1.0, alias="lambda")
    normalize: bool = False
    int8_mask: bool = False


class Thinned(Weighted):
    """The weight of one input, and the share of its task vector that is kept."""

    density: Number = Field(default=1.0, ge=0, le=1)


def task_vector(source: Source, base: Source) -> Callable[[Block], Tensor]:
    """The reader of the source minus the base."""
    return lambda block: source.read(block).sub_(base.read(block))


def combine(
    operands: Operands[TaskVectorOptions, Weighted], thins: Sequence[Thin | None], *, consensus: bool
) -> Kernel:
    """The kernel of theta_0 + lambda merged(thinned task vectors); None in `thins` keeps a task vector whole."""
    base, options = operands.base, operands.options
    assert base is not None
    weights = [parameters.weight for parameters in operands.each]
    scales = [1.0 if thin is None else thin.scale for thin in thins]
    if all(thin is None for thin in thins) and (len(weights) == 1 or not consensus):
        return _plain_sum(operands.inputs, weights, base, options)
    merge = _agreeing if consensus else _sum

    def kernel(block: Block) -> Tensor:
        origin = base.read(block)
        deltas = (
            _thinned(source.read(block).sub_(origin), thin, block)
            for source, thin in zip(operands.inputs, thins, strict=True)
        )
        merged = merge(deltas, weights, scales, options.normalize)
        return origin.add_(merged, alpha=options.lambda_)

    return kernel


def _plain_sum(sources: Sequence[Source], weights: list[float], base: Source, options: TaskVectorOptions) -> Kernel:
    # Task vectors need not be formed: one model with weight 1 is given back bit for bit, the base never read.
    scale = options.lambda_ / _divisor(weights) if options.normalize else options.lambda_
    scaled = [weight * scale for weight in weights]
    return weighted_sum(sources, scaled, base, 1 - sum(scaled))


def _thinned(delta: Tensor, thin: Thin | None, block: Block) -> Tensor:
    return delta if thin is None else thin.apply(block, delta)


def _sum(deltas: Iterable[Tensor], weights: Sequence[float], scales: Sequence[float], normalize: bool) -> Tensor:
    merged: Tensor | None = None
    for delta, weight, scale in zip(deltas, weights, scales, strict=True):
        merged = delta.mul_(weight * scale) if merged is None else merged.add_(delta, alpha=weight * scale)
    assert merged is not None
    return merged.div_(_divisor(weights)) if normalize else merged


def _agreeing(deltas: Iterable[Tensor], weights: Sequence[float], scales: Sequence[float], normalize: bool) -> Tensor:
    """The sum of those weighted elements whose sign is the sign of the sum of all; a sum of zero counts as plus.

    With `normalize` it is divided by the sum of the weights that went into it.
    """
    values, counts = _Votes(), _Votes()
    for delta, weight, scale in zip(deltas, weights, scales, strict=True):
        if normalize:
            counts.add(torch.sign(delta), abs(weight), weight)
        values.add(delta, weight * scale, abs(weight * scale))
    winner = torch.ge(values.total, 0, out=torch.empty_like(values.total)).mul_(2).sub_(1)
    elected = values.of(winner)
    if not normalize:
        return elected
    divisor = counts.of(winner).mul_(winner)
    # Where nobody went in, or weights cancelled, mergekit divides by one.
    return elected.div_(divisor.add_(torch.eq(divisor, 0, out=torch.empty_like(divisor))))


class _Votes:
    """Sums of signed numbers and of their sizes; half their sum and half their difference are those of either sign."""

    def __init__(self) -> None:
        self.total: Tensor = torch.empty(0)
        self._sizes: Tensor | None = None

    def add(self, numbers: Tensor, weight: float, size: float) -> None:
        """Add the numbers times `weight`, and their sizes times `size`; they are overwritten."""
        if self._sizes is None:
            self.total = numbers * weight
            self._sizes = numbers.abs_().mul_(size)
            return
        self.total.add_(numbers, alpha=weight)
        self._sizes.add_(numbers.abs_(), alpha=size)

    def of(self, winner: Tensor) -> Tensor:
        """The sum of those numbers whose sign is that of the winner, 1 or -1, where sizes grow with the numbers."""
        assert self._sizes is not None
        return self._sizes.mul_(winner).add_(self.total).mul_(0.5)


def _divisor(weights: Sequence[float]) -> float:
    total = sum(weights)
    return 1.0 if abs(total) < NO_WEIGHT else total
