"""TIES: trim each task vector, elect a sign for every element, merge what agrees with it.

Source: arXiv 2306.01708, algorithm 1. As in mergekit the vote is among weighted task vectors, the mean is over
the agreeing weights, and a vote of zero goes to plus.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import Tensor

from glue.merging.blocks import Block, Grid, Kernel
from glue.merging.gram import stacked
from glue.merging.registry import BaseUse, Operands, Survey, Whole, surveying_method
from glue.merging.selection import Cut
from glue.merging.task_vectors import Thin, Thinned, combine
from glue.merging.thinning import RescaledOptions, keep_above, keep_largest, kept_count, thinned
from glue.merging.whole_selection import Part, largest_of_all
from glue.specs.errors import InvalidInputError, Problem

# For every tensor the cut of each input's task vector.
Trims = Mapping[str, Sequence[Cut]]


class TiesOptions(RescaledOptions):
    """`normalize` takes the mean of what agrees; without it, the sum.

    `trim` keeps the largest elements of every tensor of a task vector (mergekit's way) or of the task vector of the
    whole `model` (the paper's and its authors').
    """

    normalize: bool = True
    trim: Literal["tensor", "model"] = "tensor"


def trims(whole: Whole[TiesOptions, Thinned]) -> Trims:
    """Where the largest elements of each input's whole task vector end."""
    parts = [_part(whole, tensor) for tensor in whole.tensors]
    elements = sum(part.grid.elements for part in parts)
    counts = [kept_count(density, elements) for density in densities(whole)]
    return dict(zip(whole.tensors, largest_of_all(parts, counts, whole.told), strict=True))


def _part(whole: Whole[TiesOptions, Thinned], tensor: str) -> Part:
    def magnitudes() -> Callable[[Block], Tensor]:
        operands = whole.operands(tensor)
        return lambda block: stacked(operands.inputs, operands.base, block).abs_()

    return Part(Grid(whole.tensors[tensor]), magnitudes)


def densities(whole: Whole[TiesOptions, Thinned]) -> tuple[float, ...]:
    """Each input's density.

    Raises:
        InvalidInputError: it differs between tensors.
    """
    by_tensor = {tuple(each.density for each in parameters) for parameters in whole.each.values()}
    if len(by_tensor) > 1:
        detail = "trim: model trims whole task vectors, and a density differs between tensors"
        fix = "give every model one density, or set trim: tensor"
        raise InvalidInputError(f"{detail}; {fix}", [Problem("/parameters/density", "density_differs", detail, fix)])
    return by_tensor.pop()


def _check_densities(whole: Whole[TiesOptions, Thinned]) -> None:
    densities(whole)


@surveying_method(
    "ties",
    survey=Survey(trims, wanted=lambda options: options.trim == "model", check=_check_densities),
    options=TiesOptions,
    per_input=Thinned,
    base=BaseUse.REQUIRED,
)
def ties(operands: Operands[TiesOptions, Thinned], found: Trims | None) -> Kernel:
    """x_0 + lambda times the mean of those trimmed, weighted task vectors whose sign wins."""
    cuts = iter(found[operands.tensor]) if found and operands.tensor in found else None
    thins = thinned(
        operands,
        lambda source, read, parameters: (
            keep_largest(read, operands.grid, parameters.density)
            if cuts is None
            else _kept(next(cuts), parameters.density)
        ),
        keep_norm=operands.options.rescale,
    )
    return combine(operands, thins, consensus=True)


def _kept(cut: Cut, density: float) -> Thin | None:
    return None if density >= 1 else keep_above(cut)
