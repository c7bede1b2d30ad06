from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glue.merging import blocks
from glue.merging.blocks import Block, Grid
from glue.merging.selection import largest, value_at
from glue.merging.uniform import uniform


def reader(tensor: torch.Tensor) -> tuple[Grid, Callable[[Block], torch.Tensor]]:
    grid = Grid(tuple(tensor.shape))
    return grid, lambda block: tensor[block.start : block.stop].clone()


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 60),
    count=st.integers(-1, 700),
    levels=st.sampled_from([1, 3, 50, 10**6]),
    trend=st.sampled_from([0.0, 5.0]),
    seed=st.integers(0, 99),
)
def test_the_largest_are_marked_whatever_the_values(
    rows: int, count: int, levels: int, trend: float, seed: int
) -> None:
    """Few levels make ties; a trend over the rows misleads the sample, so that more than one pass is needed."""
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.rand(rows, 11, generator=generator) * levels).floor() / levels
    tensor += trend * torch.arange(rows).unsqueeze(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ELEMENTS", 33)
        grid, read = reader(tensor)
        cut = largest(read, grid, count)
        mask = torch.cat([cut.mask(block, read(block)) for block in grid.blocks])
    expected = min(max(count, 0), tensor.numel())
    assert int(mask.sum()) == expected
    if 0 < expected < tensor.numel():
        assert tensor[mask == 1].min() >= tensor[mask == 0].max()


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), place=st.floats(0, 1))
def test_values_at_a_rank_are_those_of_sorting(rows: int, place: float) -> None:
    tensor = torch.randn(rows, 11)
    rank = int(place * (tensor.numel() - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ELEMENTS", 33)
        grid, read = reader(tensor)
        assert value_at(read, grid, rank) == float(tensor.flatten().sort().values[rank])


BLOCK = Block(0, 0, 256)


def test_random_numbers_are_even_and_independent_of_everything_else() -> None:
    numbers = uniform(1, "a", "t", BLOCK, 1024)
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts = np.bincount((numbers.numpy().ravel() * 256).astype(int), minlength=256)
    expected = numbers.numel() / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 150 < chi_square < 380
    others = [
        uniform(2, "a", "t", BLOCK, 1024),
        uniform(1, "b", "t", BLOCK, 1024),
        uniform(1, "a", "u", BLOCK, 1024),
        uniform(1, "a", "t", Block(1, 256, 512), 1024),
        numbers.roll(1, 1),
        numbers.roll(1, 0),
    ]
    for other in others:
        correlation = float(torch.corrcoef(torch.stack([numbers.flatten(), other.flatten()]))[0, 1])
        assert abs(correlation) < 5 / numbers.numel() ** 0.5


def test_random_numbers_are_the_same_for_ever() -> None:
    numbers = uniform(1, "a", "t", BLOCK, 1024).flatten()
    assert [int(number * 2**24) for number in numbers[:4]] == [12547664, 4909133, 111495, 14125901]
