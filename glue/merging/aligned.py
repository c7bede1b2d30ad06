"""A model's embedding brought to another vocabulary, as an operand. Knows no method."""

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.vocabulary import Row, RowMap
from glue.merging.blocks import Block, Grid
from glue.merging.tree import Leaf


class AlignedSource:
    """Rows of a stored tensor in the order of the result's vocabulary."""

    def __init__(self, leaf: Leaf, rows: RowMap, checkpoints: Mapping[str, Checkpoint], grid: Grid) -> None:
        self.key = leaf.model
        self._leaf, self._rows, self._checkpoints, self._grid = leaf, rows, checkpoints, grid

    def read(self, block: Block) -> Tensor:
        """The block in fp32."""
        own = self._rows.own[block.start : block.stop]
        known = self._known(block.start, own)
        padding = block.stop - block.start - len(own)
        if not padding:
            return known
        return torch.cat([known, self._mean.expand(padding, -1)])

    def _known(self, first: int, own: Tensor) -> Tensor:
        result = torch.empty(len(own), self._grid.columns)
        # A run ends where the next row is no successor; every lacking row is a run of its own.
        ends = torch.nonzero((own[1:] != own[:-1] + 1) | (own[:-1] < 0)).flatten().add_(1).tolist()
        for start, stop in zip([0, *ends], [*ends, len(own)], strict=True):
            if stop > start and own[start] >= 0:
                result[start:stop] = self._stored(self.key, int(own[start]), stop - start)
            elif stop > start:
                result[start] = self._default(self._rows.defaults[first + start])
        return result

    def _default(self, rows: tuple[Row, ...]) -> Tensor:
        if not rows:
            return torch.zeros(self._grid.columns)
        return torch.stack([self._stored(model, row, 1)[0] for model, row in rows]).mean(0)

    def _stored(self, model: str, row: int, count: int) -> Tensor:
        columns = self._grid.columns
        tensor = self._leaf.donors.get(model, self._leaf.tensor)
        flat = self._checkpoints[model].read_flat(tensor, row * columns, (row + count) * columns)
        return flat.to(torch.float32).view(count, columns)

    @cached_property
    def _mean(self) -> Tensor:
        total = torch.zeros(self._grid.columns, dtype=torch.float64)
        for block in self._grid.blocks:
            own = self._rows.own[block.start : block.stop]
            if len(own):
                total += self._known(block.start, own).sum(0, dtype=torch.float64)
        return (total / len(self._rows.own)).float()
