"""TIES: trim each task vector, elect a sign for every element, merge what agrees with it.

Source: arXiv 2306.01708, algorithm 1. As in mergekit the vote is among weighted task vectors, the mean is over
the agreeing weights, and a vote of zero goes to plus.
"""

from glue.merging.blocks import Kernel
from glue.merging.registry import BaseUse, Operands, merge_method
from glue.merging.task_vectors import Thinned, combine
from glue.merging.thinning import RescaledOptions, keep_largest, thinned


class TiesOptions(RescaledOptions):
    """`normalize` takes the mean of what agrees; without it, the sum."""

    normalize: bool = True


@merge_method("ties", options=TiesOptions, per_input=Thinned, base=BaseUse.REQUIRED)
def ties(operands: Operands[TiesOptions, Thinned]) -> Kernel:
    """x_0 + lambda times the mean of those trimmed, weighted task vectors whose sign wins."""
    thins = thinned(
        operands,
        lambda source, read, parameters: keep_largest(read, operands.grid, parameters.density),
        keep_norm=operands.options.rescale,
    )
    return combine(operands, thins, consensus=True)
