"""DARE's random dropping, which `dare_linear` and `dare_ties` share. Knows neither.

Source: arXiv 2311.03099, section 3: drop each element of a task vector with probability p, rescale by 1/(1-p).
`density` is 1-p.
"""

from pydantic import Field

from glue.merging.registry import Operands
from glue.merging.task_vectors import Thin, Thinned
from glue.merging.thinning import RandomOptions, keep_at_random, thinned
from glue.merging.uniform import Stream
from glue.specs.base import Number


class Kept(Thinned):
    """The weight of one input, and the probability with which an element of its task vector is kept."""

    density: Number = Field(default=1.0, gt=0, le=1)


def dropped(operands: Operands[RandomOptions, Kept]) -> list[Thin | None]:
    """The thinning of every input."""
    options, grid = operands.options, operands.grid
    divide = options.rescale and options.rescale_by == "probability"
    return thinned(
        operands,
        lambda source, read, parameters: keep_at_random(
            Stream(options.seed, source.key, operands.tensor), grid, parameters.density, divide=divide
        ),
        keep_norm=options.rescale and not divide,
    )
