"""Task Arithmetic: the base plus the weighted sum of the task vectors.

Source: arXiv 2212.04089, section 2: theta = theta_0 + lambda sum_i w_i (theta_i - theta_0).
"""

from glue.merging.blocks import Kernel
from glue.merging.linear import Weighted
from glue.merging.registry import BaseUse, Operands, merge_method
from glue.merging.task_vectors import TaskVectorOptions, combine


@merge_method("task_arithmetic", options=TaskVectorOptions, per_input=Weighted, base=BaseUse.REQUIRED)
def task_arithmetic(operands: Operands[TaskVectorOptions, Weighted]) -> Kernel:
    """x_0 + lambda sum_i w_i (x_i - x_0), divided by sum_i w_i where `normalize` is set."""
    return combine(operands, [None] * len(operands.inputs), consensus=False)
