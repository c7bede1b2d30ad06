"""A tensor as blocks of whole rows, and what gives such blocks. Knows no file and no method.

Every method works block by block, so memory depends on the block and not on the tensor or the model. Blocks
never depend on the device or the number of threads: sums over them give the same bits everywhere.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

BLOCK_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Block:
    """Rows `start` to before `stop` of a tensor seen as a matrix; `index` counts the blocks of the tensor."""

    index: int
    start: int
    stop: int


@dataclass(frozen=True)
class Grid:
    """How a tensor of some shape is cut: rows are along its last dimension; a vector or a scalar is one row."""

    shape: tuple[int, ...]

    @property
    def columns(self) -> int:
        """The length of a row."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """The number of rows."""
        return math.prod(self.shape[:-1])

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def span(self, block: Block) -> tuple[int, int]:
        """The block's first element in the flattened tensor, and the one behind its last."""
        return block.start * self.columns, block.stop * self.columns

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks in order, each of about 2^18 elements or one row."""
        return tuple(self._blocks())

    def _blocks(self) -> Iterator[Block]:
        height = max(1, BLOCK_ELEMENTS // max(1, self.columns))
        for index, start in enumerate(range(0, self.rows, height)):
            yield Block(index, start, min(start + height, self.rows))


Kernel = Callable[[Block], Tensor]


class Source(Protocol):
    """One operand of a merge of one tensor."""

    @property
    def key(self) -> str:
        """What names the model among the operands, in every run; random masks are keyed by it."""

    def read(self, block: Block) -> Tensor:
        """The block in fp32, `rows x columns`, freshly made: the caller may overwrite it."""
