"""Laws of the methods for any values, weights, shapes and orders."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glue.merging import blocks
from glue.merging.methods import all_methods, method_of
from glue.merging.registry import BaseUse
from glue.merging.tensors import merge_tensors

SEEDED = {"dare_linear", "dare_ties", "della", "della_linear"}
# Git Re-Basin permutes whole models; what holds for it is tested on models.
NAMES = sorted(all_methods().keys() - {"git_rebasin"})
WEIGHTED = [name for name in NAMES if "weight" in method_of(name).per_input.model_fields]
ON_TASK_VECTORS = [name for name in WEIGHTED if "lambda_" in method_of(name).options.model_fields]
SEVERAL = [name for name in NAMES if method_of(name).most != 1]
SYMMETRIC = [name for name in SEVERAL if name not in SEEDED | {"slerp"}]
ALONE = [
    name
    for name in NAMES
    if method_of(name).fewest == 1 and name not in {"arcee_fusion", "nearswap", "sce"}
]  # fmt: skip
DENSITIES: dict[str, dict[str, float]] = {
    "ties": {"density": 0.5},
    "breadcrumbs": {"density": 0.6, "gamma": 0.1},
    "breadcrumbs_ties": {"density": 0.6, "gamma": 0.1},
    "dare_linear": {"density": 0.7},
    "dare_ties": {"density": 0.7},
    "della": {"density": 0.7},
    "della_linear": {"density": 0.7},
}
OPTIONS: dict[str, dict[str, Any]] = {"slerp": {"t": 0.3}, "nearswap": {"t": 0.05}}
SHAPES = st.sampled_from([(7, 5), (11,), (2, 3, 4), (1, 1), ()])
SEEDS = st.integers(0, 10_000)


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ELEMENTS", 12)
        yield


def base_of(name: str, base: Tensor) -> Tensor | None:
    return None if method_of(name).base is BaseUse.NONE else base


def models_of(count: int, shape: tuple[int, ...], seed: int) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return [base + 0.3 * torch.randn(shape, generator=generator) for _ in range(count)], base


def fitting(name: str, count: int) -> int:
    return min(max(count, method_of(name).fewest), method_of(name).most or count)


def weights_for(name: str, weights: list[float]) -> list[dict[str, float]]:
    return [{"weight": weight} if name in WEIGHTED else {} for weight in weights]


@settings(max_examples=120, deadline=None)
@given(name=st.sampled_from(ALONE), shape=SHAPES, seed=SEEDS, scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e20]))
def test_one_model_alone_is_given_back_bit_for_bit(name: str, shape: tuple[int, ...], seed: int, scale: float) -> None:
    (tensor,), base = models_of(1, shape, seed)
    merged = merge_tensors(name, [tensor * scale], base_of(name, base), each=weights_for(name, [1.0]))
    assert torch.equal(merged, tensor * scale)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(SEVERAL), count=st.integers(2, 5), shape=SHAPES, seed=SEEDS)
def test_copies_of_one_model_give_it_back(name: str, count: int, shape: tuple[int, ...], seed: int) -> None:
    count = fitting(name, count)
    (tensor,), base = models_of(1, shape, seed)
    merged = merge_tensors(
        name, [tensor] * count, base_of(name, base), parameters=OPTIONS.get(name, {}),
        each=weights_for(name, [1 / count] * count),
    )  # fmt: skip
    torch.testing.assert_close(merged, tensor, rtol=1e-5, atol=1e-5)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(SYMMETRIC),
    weights=st.lists(st.floats(0.1, 1), min_size=3, max_size=3),
    order=st.permutations(range(3)),
    shape=SHAPES,
    seed=SEEDS,
)
def test_the_order_of_models_with_their_weights_does_not_matter(
    name: str, weights: list[float], order: list[int], shape: tuple[int, ...], seed: int
) -> None:
    count = fitting(name, 3)
    order = [place for place in order if place < count]
    models, base = models_of(count, shape, seed)
    each = [own | DENSITIES.get(name, {}) for own in weights_for(name, weights[:count])]
    straight = merge_tensors(name, models, base_of(name, base), each=each)
    turned = merge_tensors(
        name, [models[place] for place in order], base_of(name, base), each=[each[place] for place in order]
    )
    torch.testing.assert_close(turned, straight, rtol=1e-4, atol=1e-5)


@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from(ON_TASK_VECTORS), count=st.integers(1, 4), shape=SHAPES, seed=SEEDS)
def test_weights_of_zero_give_the_base(name: str, count: int, shape: tuple[int, ...], seed: int) -> None:
    models, base = models_of(count, shape, seed)
    each = [{"weight": 0.0} | DENSITIES.get(name, {})] * count
    assert torch.equal(merge_tensors(name, models, base, each=each), base)


@settings(max_examples=120, deadline=None)
@given(name=st.sampled_from(ON_TASK_VECTORS), scale=st.floats(-2, 2), shape=SHAPES, seed=SEEDS)
def test_lambda_scales_what_is_added_to_the_base(name: str, scale: float, shape: tuple[int, ...], seed: int) -> None:
    models, base = models_of(3, shape, seed)
    each = [{"weight": weight} | DENSITIES.get(name, {}) for weight in (0.5, 0.3, 0.7)]
    once = merge_tensors(name, models, base, each=each)
    scaled = merge_tensors(name, models, base, parameters={"lambda": scale}, each=each)
    torch.testing.assert_close(scaled - base, scale * (once - base), rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 5), data=st.data(), shape=SHAPES, seed=SEEDS)
def test_all_weight_on_one_model_gives_that_model(
    count: int, data: st.DataObject, shape: tuple[int, ...], seed: int
) -> None:
    models, _ = models_of(count, shape, seed)
    chosen = data.draw(st.integers(0, count - 1))
    each = [{"weight": float(place == chosen)} for place in range(count)]
    assert torch.equal(merge_tensors("linear", models, each=each), models[chosen])


@settings(max_examples=60, deadline=None)
@given(count=st.integers(2, 6), shape=SHAPES, seed=SEEDS)
def test_the_running_mean_is_the_mean(count: int, shape: tuple[int, ...], seed: int) -> None:
    """The greedy soup's update: current x k/(k+1) + next/(k+1)."""
    models, _ = models_of(count, shape, seed)
    current = models[0]
    for number, model in enumerate(models[1:], start=1):
        each = [{"weight": number / (number + 1)}, {"weight": 1 / (number + 1)}]
        current = merge_tensors("linear", [current, model], each=each)
    straight = merge_tensors("linear", models, each=[{"weight": 1.0}] * count)
    torch.testing.assert_close(current, straight, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(2, 4), seed=SEEDS)
def test_model_stock_by_row_is_model_stock_of_every_row(count: int, seed: int) -> None:
    models, base = models_of(count, (6, 9), seed)
    merged = merge_tensors("model_stock", models, base, parameters={"filter_wise": True})
    rows = [merge_tensors("model_stock", [each[row] for each in models], base[row]) for row in range(6)]
    torch.testing.assert_close(merged, torch.stack(rows), rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(2, 4), shape=SHAPES, seed=SEEDS, density=st.floats(0.1, 1))
def test_every_element_of_ties_lies_among_the_kept_ones_of_its_sign(
    count: int, shape: tuple[int, ...], seed: int, density: float
) -> None:
    """The mean of those task vectors that agree with the elected sign: between the smallest and the largest of them."""
    models, base = models_of(count, shape, seed)
    merged = merge_tensors("ties", models, base, each=[{"weight": 1.0, "density": density}] * count) - base
    deltas = torch.stack(models) - base
    assert bool((merged <= deltas.amax(0).clamp(min=0) + 1e-5).all())
    assert bool((merged >= deltas.amin(0).clamp(max=0) - 1e-5).all())


@settings(max_examples=40, deadline=None)
@given(small=st.sampled_from([0.0, 1e-9, 1e-6, 1e-3]), weight=st.floats(0.1, 0.9), seed=SEEDS)
def test_multislerp_with_a_model_that_hardly_left_the_base(small: float, weight: float, seed: int) -> None:
    """Directions count, not lengths; of a model that is the base itself there is no direction."""
    (model, other), base = models_of(2, (6, 20), seed)
    other = base + small * (other - base)
    each = [{"weight": weight}, {"weight": 1 - weight}]
    merged = merge_tensors("multislerp", [model, other], base, each=each)
    one, two = ((tensor - base).double() for tensor in (model, other))
    directions = [delta / (delta.norm() + 1e-8) for delta in (one, two)]
    mean = weight * directions[0] + (1 - weight) * directions[1]
    unit = mean / mean.norm()
    tangent = mean - (weight * (directions[0] * unit).sum() + (1 - weight) * (directions[1] * unit).sum()) * unit
    step = tangent.norm() + 1e-8
    length = weight * one.norm() + (1 - weight) * two.norm()
    expected = length * (torch.cos(step) * unit + torch.sin(step) / step * tangent)
    torch.testing.assert_close((merged - base).double(), expected, rtol=1e-3, atol=1e-4)
