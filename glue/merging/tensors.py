"""Merging tensors that are in memory, by the same methods as whole models. Reads no file."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from glue.checkpoints.reader import Checkpoint
from glue.merging.blocks import Block, Grid
from glue.merging.methods import method_of
from glue.merging.registry import Operands, Whole
from glue.specs.errors import InvalidInputError


class TensorSource:
    """A tensor in memory as an operand; `key` names its model for random masks."""

    def __init__(self, key: str, tensor: Tensor) -> None:
        self.key = key
        self._rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() else tensor.reshape(1, 1)

    def read(self, block: Block) -> Tensor:
        """The block in fp32."""
        return self._rows[block.start : block.stop].to(torch.float32, copy=True)


def merge_tensors(
    method: str,
    tensors: Sequence[Tensor],
    base: Tensor | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    each: Sequence[Mapping[str, Any]] | None = None,
    name: str = "",
) -> Tensor:
    """One tensor merged from several of the same shape, in fp32; `each` holds the parameters of every input.

    To a method that looks at whole models the tensor is all of them.

    Raises:
        InvalidInputError: the method or a parameter is unknown or wrong.
    """
    chosen = method_of(method)
    chosen.check(len(tensors), base is not None)
    grid = Grid(tuple(tensors[0].shape))
    inputs = tuple(TensorSource(str(number), tensor) for number, tensor in enumerate(tensors))
    operands = Operands(
        name,
        grid,
        inputs,
        TensorSource("base", base) if base is not None else None,
        chosen.options.parse(dict(parameters or {})),
        tuple(chosen.per_input.parse(dict(one)) for one in each or [{}] * len(tensors)),
    )
    survey = chosen.survey if chosen.survey is not None and chosen.survey.wanted(operands.options) else None
    with torch.no_grad():
        kernel = chosen.prepare(operands, survey.take(_whole(operands)) if survey is not None else None)
        return torch.cat([kernel(block).flatten() for block in grid.blocks]).view(grid.shape)


def _whole(operands: Operands[Any, Any]) -> Whole[Any, Any]:
    def statistics(kind: str) -> tuple[Checkpoint, ...]:
        raise InvalidInputError(f"tensors in memory bring no statistics of kind '{kind}'")

    tensor = operands.tensor
    return Whole(
        {tensor: operands.grid.shape},
        {tensor: operands.each},
        {},
        lambda name: operands,
        statistics,
        lambda message: None,
    )
