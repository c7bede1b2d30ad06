"""Model Breadcrumbs: drop the outliers and the small elements of each task vector, add the rest to the base.

Source: arXiv 2312.06795, section 3. `gamma` is the share of outliers, `density` the share that is kept.
"""

from pydantic import Field

from glue.merging.blocks import Kernel
from glue.merging.registry import BaseUse, Operands, merge_method
from glue.merging.task_vectors import Thin, Thinned, combine
from glue.merging.thinning import RescaledOptions, keep_band, thinned
from glue.specs.base import Number


class Crumbs(Thinned):
    """The weight of one input, the share of its task vector that is kept, and the share of outliers dropped first."""

    gamma: Number = Field(default=0.01, ge=0, le=1)


@merge_method("breadcrumbs", options=RescaledOptions, per_input=Crumbs, base=BaseUse.REQUIRED)
def breadcrumbs(operands: Operands[RescaledOptions, Crumbs]) -> Kernel:
    """x_0 + lambda sum_i w_i (band of x_i - x_0)."""
    return combine(operands, bands(operands), consensus=False)


def bands(operands: Operands[RescaledOptions, Crumbs]) -> list[Thin | None]:
    """The thinning of every input."""
    return thinned(
        operands,
        lambda source, read, parameters: keep_band(read, operands.grid, parameters.density, parameters.gamma),
        keep_norm=operands.options.rescale,
    )
