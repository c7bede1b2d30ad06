"""DELLA: drop elements of each task vector by rank and chance, rescale, elect signs, merge what agrees.

Source: arXiv 2406.11617, section 3.
"""

from glue.merging.blocks import Kernel
from glue.merging.magprune import Ranked, pruned
from glue.merging.registry import BaseUse, Operands, merge_method
from glue.merging.task_vectors import combine
from glue.merging.thinning import RandomOptions


class DellaOptions(RandomOptions):
    """`normalize` takes the mean of what agrees; without it, the sum."""

    normalize: bool = True


@merge_method("della", options=DellaOptions, per_input=Ranked, base=BaseUse.REQUIRED)
def della(operands: Operands[DellaOptions, Ranked]) -> Kernel:
    """x_0 + lambda times the mean of those pruned, rescaled, weighted task vectors whose sign wins."""
    return combine(operands, pruned(operands), consensus=True)
