"""Order statistics of a whole tensor, found block by block. Knows no method.

Exact, in bounded memory: a sample brackets the value that is looked for, one pass counts what lies above the
bracket and keeps what lies inside. Only when the sample misled does another pass follow.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glue.merging.blocks import Block, Grid

Values = Callable[[Block], Tensor]

SAMPLED_BLOCKS = 4
# So many values place the bracket; their order statistics err by less than half a percent of all values.
SAMPLED_VALUES = 1 << 16
# Half the width of the bracket as a share of all values; blocks of one tensor differ by less than this mostly.
MARGIN = 0.01


@dataclass(frozen=True)
class Cut:
    """Where the `count` largest values of a tensor end.

    All values above `threshold` belong to them, and of those equal to it the first `ties[b]` of block `b`, in
    order of position; None stands for all of a block.
    """

    threshold: float
    ties: tuple[int | None, ...]

    def keep(self, block: Block, values: Tensor) -> NDArray[np.bool_]:
        """Whether values of the block belong to the largest."""
        ties, found, threshold = self.ties[block.index], values.numpy(), np.float32(self.threshold)
        kept: NDArray[np.bool_] = found >= threshold if ties is None else found > threshold
        if ties:
            kept.reshape(-1)[np.flatnonzero(found == threshold)[:ties]] = True
        return kept

    def mask(self, block: Block, values: Tensor) -> Tensor:
        """One where a value of the block belongs to the largest, else zero, in fp32."""
        return torch.from_numpy(self.keep(block, values).view(np.uint8)).to(torch.float32)


def largest(values: Values, grid: Grid, count: int) -> Cut:
    """The cut below the `count` largest of a tensor's values; `values` gives a block of them in fp32, none NaN."""
    if count <= 0:
        return Cut(float("inf"), (0,) * len(grid.blocks))
    if count >= grid.elements:
        return Cut(float("-inf"), (None,) * len(grid.blocks))
    low, high = _bracket(values, grid, count)
    while True:
        above, inside = _pass(values, grid, low, high)
        kept = np.concatenate(inside)
        if above < count <= above + len(kept):
            break
        low, high = (high, np.inf) if above >= count else (-np.inf, low)
    place = len(kept) - (count - above)
    kept.partition(place)
    threshold = kept[place]
    return Cut(float(threshold), _ties(inside, threshold, count - above - int((kept > threshold).sum())))


def value_at(values: Values, grid: Grid, rank: int) -> float:
    """The value at place `rank`, from zero, when all are sorted upwards."""
    if rank <= 0:
        return min(float(values(block).min()) for block in grid.blocks)
    return largest(values, grid, grid.elements - rank).threshold


def _bracket(values: Values, grid: Grid, count: int) -> tuple[float, float]:
    step = max(1, len(grid.blocks) // SAMPLED_BLOCKS)
    blocks = grid.blocks[step // 2 :: step]
    stride = 1 + sum(block.stop - block.start for block in blocks) * grid.columns // SAMPLED_VALUES
    sample = np.concatenate([values(block).numpy().ravel()[::stride] for block in blocks])
    margin = MARGIN if len(sample) < grid.elements else 0.0
    share = 1 - count / grid.elements
    places = [round((share + sign * margin) * len(sample)) for sign in (-1, 1)]
    places = [min(len(sample) - 1, max(0, place)) for place in places]
    sample.partition(places)
    return float(sample[places[0]]), float(sample[places[1]])


def _pass(values: Values, grid: Grid, low: float, high: float) -> tuple[int, list[np.ndarray]]:
    above, inside = 0, []
    for block in grid.blocks:
        found = values(block).numpy().ravel()
        over = found > high
        above += int(np.count_nonzero(over))
        inside.append(np.compress((found >= low) ^ over, found))
    return above, inside


def _ties(inside: list[np.ndarray], threshold: np.floating, wanted: int) -> tuple[int | None, ...]:
    ties: list[int | None] = []
    for found in inside:
        equal = int(np.count_nonzero(found == threshold))
        taken = min(equal, wanted)
        wanted -= taken
        ties.append(None if taken == equal else taken)
    return tuple(ties)
