"""Which layer of which model stands where in a stack. Pure; knows numbers of layers and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from glue.specs.errors import InvalidInputError, Problem
from glue.stacking.stack_yaml import Concatenation, DepthUpscaling, Interleaving, Stack, TopCopies, ZeroBlocks


@dataclass(frozen=True)
class Place:
    """One layer of the result: layer `layer` of model number `model`; a `silent` one adds nothing to its input."""

    model: int
    layer: int
    silent: bool = False


def layout(stack: Stack, depths: Sequence[int]) -> tuple[Place, ...]:
    """The layers of the result from bottom to top; `depths` are the numbers of layers of the stack's models.

    Raises:
        InvalidInputError: a number does not fit the depth.
    """
    columns = [[Place(model, layer) for layer in range(depth)] for model, depth in enumerate(depths)]
    match stack:
        case Concatenation():
            return tuple(place for column in columns for place in column)
        case Interleaving():
            return tuple(place for row in zip_longest(*columns) for place in row if place is not None)
        case DepthUpscaling():
            return _upscaled(columns[0], stack.dropped)
        case ZeroBlocks():
            return _with_silent(columns[0], stack.blocks)
        case TopCopies():
            return _with_copies(columns[0], stack.layers)


def _upscaled(column: list[Place], dropped: int | None) -> tuple[Place, ...]:
    count = len(column) // 4 if dropped is None else dropped
    if count >= len(column):
        raise _misfit("/dropped", f"{count} of {len(column)} layers cannot be dropped", "drop at least one layer fewer")
    return (*column[: len(column) - count], *column[count:])


def _with_silent(column: list[Place], blocks: int) -> tuple[Place, ...]:
    depth = len(column)
    if depth % blocks:
        fitting = ", ".join(str(number) for number in range(1, depth + 1) if depth % number == 0)
        raise _misfit(
            "/blocks", f"{depth} layers do not divide into {blocks} groups", f"set blocks to one of {fitting}"
        )
    size = depth // blocks
    groups = [column[start : start + size] for start in range(0, depth, size)]
    return tuple(place for group in groups for place in (*group, replace(group[-1], silent=True)))


def _with_copies(column: list[Place], layers: int) -> tuple[Place, ...]:
    if layers > len(column):
        fix = f"set layers to at most {len(column)}"
        raise _misfit("/layers", f"there are {len(column)} layers, not {layers}", fix)
    return (*column, *column[-layers:])


def _misfit(pointer: str, detail: str, fix: str) -> InvalidInputError:
    return InvalidInputError(f"{pointer}: {detail}; {fix}", [Problem(pointer, "stack_depth", detail, fix)])
