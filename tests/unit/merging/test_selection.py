from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glue.merging import blocks
from glue.merging.blocks import Block, Grid
from glue.merging.selection import largest, value_at
from glue.merging.thinning import ranks
from glue.merging.uniform import Stream


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


COUNT = 256 * 1024


def test_random_numbers_are_even_and_independent_of_everything_else() -> None:
    numbers = Stream(1, "a", "t").numbers(0, COUNT)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for shift in (1, 2**8, 2**16):
        counts = np.bincount((numbers * shift * 256).astype(int) % 256, minlength=256)
        expected = COUNT / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert 150 < chi_square < 380
    others = [
        Stream(2, "a", "t").numbers(0, COUNT),
        Stream(1, "b", "t").numbers(0, COUNT),
        Stream(1, "a", "u").numbers(0, COUNT),
        Stream(1, "a", "t").numbers(COUNT, 2 * COUNT),
        (numbers * 256) % 1,
        (numbers * 2**16) % 1,
        *(np.roll(numbers, shift) for shift in (1, 2, 3, 4, 1024)),
    ]
    for other in others:
        assert abs(np.corrcoef(numbers, other)[0, 1]) < 5 / COUNT**0.5


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 1000), length=st.integers(0, 1000), far=st.sampled_from([0, 2**33 - 500]))
def test_random_numbers_belong_to_positions(start: int, length: int, far: int) -> None:
    stream = Stream(1, "a", "t")
    whole = stream.numbers(far, far + 2000)
    assert np.array_equal(stream.numbers(far + start, far + start + length), whole[start : start + length])


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 50))
def test_comparisons_each_with_its_own_probability_are_those_of_the_numbers(start: int) -> None:
    stream = Stream(1, "a", "t")
    each = np.linspace(0.001, 0.999, 5000, dtype=np.float32)
    assert np.array_equal(stream.below_each(each, start), stream.numbers(start, start + 5000) < each)


@pytest.mark.parametrize("probability", [0.5, 0.25, 0.75, 0.1, 0.3, 0.9, 1 / 3, 2**-12, 1 - 2**-12])
def test_one_probability_for_all_is_met_at_every_place_of_a_word(probability: float) -> None:
    found = Stream(1, "a", "t").below(probability, 0, 32 * 2**16)
    spread = (probability * (1 - probability) / found.size) ** 0.5
    assert abs(found.mean() - probability) < 5 * spread
    assert (np.abs(found.reshape(-1, 32).mean(0) - probability) < 5 * spread * 32**0.5).all()
    for shift in (1, 2, 8, 31, 32, 33, 1024):
        together = (found & np.roll(found, shift)).mean()
        assert abs(together - probability**2) < 6 * spread


@settings(max_examples=60, deadline=None)
@given(
    one=st.floats(0, 1, exclude_max=True),
    other=st.sampled_from([0.0, 0.5, 0.25, 1 - 2**-25, 2**-24, 2**-40, 0.7]),
    start=st.integers(0, 1000),
    length=st.integers(0, 1000),
)
def test_what_is_below_one_probability_is_below_a_larger_one(one: float, other: float, start: int, length: int) -> None:
    stream = Stream(1, "a", "t")
    low, high = (stream.below(probability, 0, 2000) for probability in sorted((one, other)))
    assert (low <= high).all()
    assert np.array_equal(stream.below(one, start, start + length), stream.below(one, 0, 2000)[start : start + length])


@pytest.mark.parametrize("change", [(2, "a", "t"), (1, "b", "t"), (1, "a", "u")])
def test_masks_of_others_are_independent(change: tuple[int, str, str]) -> None:
    one, other = (Stream(*key).below(0.5, 0, COUNT) for key in ((1, "a", "t"), change))
    assert abs((one == other).mean() - 0.5) < 5 * 0.5 / COUNT**0.5


def test_random_numbers_are_the_same_for_ever() -> None:
    assert (Stream(1, "a", "t").numbers(0, 4) * 2**24).astype(int).tolist() == [12640898, 5484658, 13036660, 1925476]
    assert np.packbits(Stream(1, "a", "t").below(0.3, 0, 32)).tolist() == [16, 17, 145, 2]


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 40), levels=st.sampled_from([1, 3, 10**6]))
def test_ranks_are_those_of_a_stable_sort(rows: int, columns: int, levels: int) -> None:
    values = (torch.rand(rows, columns) * levels).floor() / levels
    places = torch.argsort(torch.argsort(values, dim=1, stable=True), dim=1)
    expected = places / (columns - 1) if columns > 1 else torch.full_like(values, 0.5)
    torch.testing.assert_close(ranks(values), expected.float(), rtol=1e-6, atol=0)
