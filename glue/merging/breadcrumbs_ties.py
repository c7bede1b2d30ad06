"""Model Breadcrumbs with TIES: drop outliers and small elements, elect signs, merge what agrees.

Source: arXiv 2312.06795, section 3, on top of arXiv 2306.01708.
"""

from glue.merging.blocks import Kernel
from glue.merging.breadcrumbs import Crumbs, bands
from glue.merging.registry import BaseUse, Operands, merge_method
from glue.merging.task_vectors import combine
from glue.merging.thinning import RescaledOptions


@merge_method("breadcrumbs_ties", options=RescaledOptions, per_input=Crumbs, base=BaseUse.REQUIRED)
def breadcrumbs_ties(operands: Operands[RescaledOptions, Crumbs]) -> Kernel:
    """x_0 + lambda times the sum of those weighted bands whose sign wins."""
    return combine(operands, bands(operands), consensus=True)
