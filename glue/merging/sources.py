"""From a tree to blocks in fp32: stored tensors are read, operations are prepared and computed on the way up."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from glue.checkpoints.reader import Checkpoint
from glue.merging.aligned import AlignedSource
from glue.merging.blocks import Block, Grid, Kernel, Source
from glue.merging.registry import Operands
from glue.merging.tree import Leaf, Node, Operation
from glue.specs.errors import IncompatibleModelsError


class StoredSource:
    """A stored tensor, read block by block."""

    def __init__(self, leaf: Leaf, checkpoint: Checkpoint, grid: Grid) -> None:
        self._leaf, self._checkpoint, self._columns = leaf, checkpoint, grid.columns
        shape = checkpoint.info(leaf.tensor).shape
        if shape != grid.shape:
            raise IncompatibleModelsError(f"{leaf.tensor} of {leaf.model} has shape {shape}, others have {grid.shape}")

    @property
    def key(self) -> str:
        """The model's name."""
        return self._leaf.model

    def read(self, block: Block) -> Tensor:
        """The block in fp32."""
        start, stop = block.start * self._columns, block.stop * self._columns
        flat = self._checkpoint.read_flat(self._leaf.tensor, start, stop)
        return flat.to(torch.float32).view(block.stop - block.start, self._columns)


class MergedSource:
    """The result of an operation, computed block by block and never stored."""

    def __init__(self, key: str, kernel: Kernel) -> None:
        self.key = key
        self._kernel = kernel

    def read(self, block: Block) -> Tensor:
        """The block in fp32."""
        return self._kernel(block)


def source_of(
    node: Node, checkpoints: Mapping[str, Checkpoint], grid: Grid, tensor: str, found: Mapping[str, Any]
) -> Source:
    """The blocks of a tree's result; every operation in it looks over its operands first, as far as it needs to.

    `found` is what surveys found, by the key of the operation.

    Raises:
        IncompatibleModelsError: a model has no such tensor, or one of another shape.
    """
    if isinstance(node, Leaf):
        if node.rows is not None:
            return AlignedSource(node, node.rows, checkpoints, grid)
        return StoredSource(node, checkpoints[node.model], grid)
    operands = operands_of(node, checkpoints, grid, tensor, found)
    return MergedSource(node.key, node.method.prepare(operands, found.get(node.key)))


def operands_of(
    node: Operation, checkpoints: Mapping[str, Checkpoint], grid: Grid, tensor: str, found: Mapping[str, Any]
) -> Operands[Any, Any]:
    """What an operation merges; see `source_of`."""
    inputs = tuple(source_of(branch, checkpoints, grid, tensor, found) for branch in node.inputs)
    base = source_of(node.base, checkpoints, grid, tensor, found) if node.base is not None else None
    return Operands(tensor, grid, inputs, base, node.options, node.each)
