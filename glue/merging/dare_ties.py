"""DARE with TIES: drop elements of each task vector at random, rescale, elect signs, merge what agrees.

Source: arXiv 2311.03099, section 3.3, on top of arXiv 2306.01708.
"""

from glue.merging.blocks import Kernel
from glue.merging.dare import Kept, dropped
from glue.merging.registry import BaseUse, Operands, merge_method
from glue.merging.task_vectors import combine
from glue.merging.thinning import RandomOptions


@merge_method("dare_ties", options=RandomOptions, per_input=Kept, base=BaseUse.REQUIRED)
def dare_ties(operands: Operands[RandomOptions, Kept]) -> Kernel:
    """x_0 + lambda times the sum of those dropped, rescaled, weighted task vectors whose sign wins."""
    return combine(operands, dropped(operands), consensus=True)
