"""DELLA's dropping by rank, which `della` and `della_linear` share. Knows neither.

Source: arXiv 2406.11617, section 3.1 (MAGPRUNE): elements of a row are kept with probabilities that grow with
the rank of their magnitude, from density - epsilon to density + epsilon.
"""

from pydantic import Field

from glue.merging.registry import Operands
from glue.merging.task_vectors import Thin, Thinned
from glue.merging.thinning import RandomOptions, keep_by_rank, thinned
from glue.merging.uniform import Stream
from glue.specs.base import Number


class Ranked(Thinned):
    """The weight of one input, the mean probability with which an element is kept, and how far ranks move it."""

    epsilon: Number = Field(default=0.15, ge=0, lt=1)


def pruned(operands: Operands[RandomOptions, Ranked]) -> list[Thin | None]:
    """The thinning of every input.

    Raises:
        InvalidInputError: density ± epsilon leaves the open interval from 0 to 1.
    """
    options, grid = operands.options, operands.grid
    divide = options.rescale and options.rescale_by == "probability"
    return thinned(
        operands,
        lambda source, read, parameters: keep_by_rank(
            Stream(options.seed, source.key, operands.tensor),
            grid,
            parameters.density,
            parameters.epsilon,
            divide=divide,
        ),
        keep_norm=options.rescale and not divide,
    )
