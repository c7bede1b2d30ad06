"""DARE with a plain sum: drop elements of each task vector at random, rescale, add all to the base.

Source: arXiv 2311.03099, section 3.
"""

from glue.merging.blocks import Kernel
from glue.merging.dare import Kept, dropped
from glue.merging.registry import BaseUse, Operands, merge_method
from glue.merging.task_vectors import combine
from glue.merging.thinning import RandomOptions


@merge_method("dare_linear", options=RandomOptions, per_input=Kept, base=BaseUse.REQUIRED)
def dare_linear(operands: Operands[RandomOptions, Kept]) -> Kernel:
    """x_0 + lambda sum_i w_i (dropped and rescaled x_i - x_0)."""
    return combine(operands, dropped(operands), consensus=False)
