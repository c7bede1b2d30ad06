"""DELLA with a plain sum: drop elements of each task vector by rank and chance, rescale, add all to the base.

Source: arXiv 2406.11617, section 3, without the election.
"""

from glue.merging.blocks import Kernel
from glue.merging.magprune import Ranked, pruned
from glue.merging.registry import BaseUse, Operands, merge_method
from glue.merging.task_vectors import combine
from glue.merging.thinning import RandomOptions


@merge_method("della_linear", options=RandomOptions, per_input=Ranked, base=BaseUse.REQUIRED)
def della_linear(operands: Operands[RandomOptions, Ranked]) -> Kernel:
    """x_0 + lambda sum_i w_i (pruned and rescaled x_i - x_0)."""
    return combine(operands, pruned(operands), consensus=False)
