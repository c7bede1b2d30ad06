"""Laws that hold for every method or many, the papers' closed cases, and independence of the blocks."""

import math
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
from glue.specs.errors import InvalidInputError

SEEDED = ("dare_linear", "dare_ties", "della", "della_linear")
PER_INPUT: dict[str, dict[str, Any]] = {
    "dare_linear": {"density": 0.6},
    "dare_ties": {"density": 0.6},
    "della": {"density": 0.6, "epsilon": 0.2},
    "della_linear": {"density": 0.6, "epsilon": 0.2},
    "ties": {"density": 0.4},
    "breadcrumbs": {"density": 0.5, "gamma": 0.05},
    "breadcrumbs_ties": {"density": 0.5, "gamma": 0.05},
}
SHARED: dict[str, dict[str, Any]] = {"slerp": {"t": 0.3}, "nearswap": {"t": 0.05}, "sce": {"select_topk": 0.5}}
# Git Re-Basin permutes whole models; what holds for it is tested on models.
NAMES = sorted(all_methods().keys() - {"git_rebasin"})


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 40)


def count_of(name: str) -> int:
    method = method_of(name)
    return method.most or max(3, method.fewest)


def random_inputs(name: str, seed: int = 0, shape: tuple[int, ...] = (23, 17)) -> tuple[list[Tensor], Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    tensors = [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(count_of(name))]
    return tensors, base if method_of(name).base is not BaseUse.NONE else None


def parameters_of(name: str, count: int, weight: float | None = None) -> list[dict[str, Any]]:
    weighted = "weight" in method_of(name).per_input.model_fields
    own = {"weight": weight if weight is not None else 1 / count} if weighted else {}
    return [own | PER_INPUT.get(name, {}) for _ in range(count)]


def merge(name: str, tensors: list[Tensor], base: Tensor | None, **shared: Any) -> Tensor:
    parameters = SHARED.get(name, {}) | shared
    return merge_tensors(name, tensors, base, parameters=parameters, each=parameters_of(name, len(tensors)), name="t")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(23, 17), (300,), (4, 6, 17), ()])
def test_how_a_tensor_is_cut_into_blocks_does_not_show(name: str, shape: tuple[int, ...], small_blocks: None) -> None:
    tensors, base = random_inputs(name, shape=shape)
    small = merge(name, tensors, base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ELEMENTS", 1 << 18)
        whole = merge(name, tensors, base)
    assert small.shape == whole.shape == shape
    if name in SEEDED and len(shape) > 1:
        # Masks are keyed by the number of the block, so only their share is comparable.
        assert small.isfinite().all()
        return
    torch.testing.assert_close(small, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_one_model_alone_is_given_back_bit_for_bit(name: str, small_blocks: None) -> None:
    if method_of(name).fewest > 1 or name in {"arcee_fusion", "nearswap", "sce"}:
        pytest.skip("needs more than one model")
    tensors, base = random_inputs(name)
    weights = {"weight": 1.0} if "weight" in method_of(name).per_input.model_fields else {}
    assert torch.equal(merge_tensors(name, tensors[:1], base, each=[weights]), tensors[0])


@pytest.mark.parametrize("name", NAMES)
def test_copies_of_one_model_give_it_back(name: str, small_blocks: None) -> None:
    tensors, base = random_inputs(name)
    copies = [tensors[0]] * count_of(name)
    each = [{key: value for key, value in one.items() if key == "weight"} for one in parameters_of(name, len(copies))]
    # A model that is its own base has no task vector left to lose.
    origin = None if base is None else tensors[0] if name in {"arcee_fusion", "nearswap"} else base
    merged = merge_tensors(name, copies, origin, parameters=_harmless(name), each=each)
    torch.testing.assert_close(merged, tensors[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_merged_with_itself_as_its_base_is_itself(name: str, small_blocks: None) -> None:
    tensors, base = random_inputs(name)
    if base is None:
        pytest.skip("takes no base")
    torch.testing.assert_close(merge(name, [base] * len(tensors), base), base, rtol=1e-6, atol=1e-7)


def _harmless(name: str) -> dict[str, Any]:
    return {"slerp": {"t": 0.3}, "nearswap": {"t": 0.05}}.get(name, {})


@pytest.mark.parametrize("name", [each for each in NAMES if each not in {*SEEDED, "slerp", "passthrough"}])
def test_the_order_of_inputs_does_not_matter(name: str, small_blocks: None) -> None:
    tensors, base = random_inputs(name)
    torch.testing.assert_close(merge(name, tensors[::-1], base), merge(name, tensors, base), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SEEDED)
def test_masks_depend_on_seed_model_and_tensor_and_on_nothing_else(name: str) -> None:
    tensors, base = random_inputs(name)
    one = merge(name, tensors, base, seed=7)
    assert torch.equal(one, merge(name, tensors, base, seed=7))
    assert not torch.equal(one, merge(name, tensors, base, seed=8))
    other = merge_tensors(
        name, tensors, base, parameters={"seed": 7}, each=parameters_of(name, len(tensors)), name="another"
    )
    assert not torch.equal(one, other)


# --- closed cases -----------------------------------------------------------------------------------------------


def test_slerp_of_perpendicular_vectors() -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    merged = merge_tensors("slerp", [a, b], parameters={"t": 0.5})
    torch.testing.assert_close(merged, torch.tensor([math.sqrt(2)] * 2))
    unequal = merge_tensors("slerp", [a, 2 * b], parameters={"t": 0.5})
    assert float(unequal.norm()) == pytest.approx(math.sqrt(10), abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(t=st.floats(0, 1), seed=st.integers(0, 1000))
def test_slerp_keeps_equal_lengths_and_can_be_walked_backwards(t: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.nn.functional.normalize(torch.randn(9, generator=generator), dim=0) * 3 for _ in range(2))
    merged = merge_tensors("slerp", [a, b], parameters={"t": t})
    if abs(float(a @ b)) / 9 < 0.999:
        assert float(merged.norm()) == pytest.approx(3, abs=1e-4)
    backwards = merge_tensors("slerp", [b, a], parameters={"t": 1 - t})
    torch.testing.assert_close(merged, backwards, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_slerp_of_parallel_or_opposite_vectors_is_the_line(sign: int) -> None:
    a = torch.tensor([1.0, 2.0, 3.0])
    merged = merge_tensors("slerp", [a, sign * 2 * a], parameters={"t": 0.25})
    torch.testing.assert_close(merged, 0.75 * a + 0.25 * sign * 2 * a)


def test_slerp_at_its_ends() -> None:
    (a, b), _ = random_inputs("slerp")
    assert torch.equal(merge_tensors("slerp", [a, b], parameters={"t": 0}), a)
    torch.testing.assert_close(merge_tensors("slerp", [a, b], parameters={"t": 1}), b)


def test_model_stock_of_equal_models_is_that_model_and_of_perpendicular_ones_the_base() -> None:
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    delta, other = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(merge_tensors("model_stock", [base + delta] * 3, base), base + delta)
    assert torch.equal(merge_tensors("model_stock", [base + delta, base + other], base), base)
    assert torch.equal(merge_tensors("model_stock", [base, base], base), base)
    assert merge_tensors("model_stock", [base + delta, base - delta], base).isfinite().all()


def test_model_stock_has_the_geometry_of_the_paper() -> None:
    """With noise of equal length b, mutually orthogonal and orthogonal to mu - w0 of length a: t = a²/(a² + b²/N)."""
    axes = torch.eye(5)
    a, b, count = 2.0, 3.0, 4
    models = [a * axes[0] + b * axes[1 + number] for number in range(count)]
    merged = merge_tensors("model_stock", models, torch.zeros(5))
    t = a**2 / (a**2 + b**2 / count)
    mean = torch.stack(models).mean(0)
    torch.testing.assert_close(merged, t * mean)
    assert abs(float((a * axes[0] - merged) @ mean)) < 1e-5


def test_task_arithmetic_with_weights_that_sum_to_one_is_linear() -> None:
    tensors, base = random_inputs("task_arithmetic")
    each = [{"weight": weight} for weight in (0.2, 0.3, 0.5)]
    torch.testing.assert_close(
        merge_tensors("task_arithmetic", tensors, base, each=each), merge_tensors("linear", tensors, each=each)
    )


@settings(max_examples=30, deadline=None)
@given(weight=st.floats(-2, 2), scale=st.floats(-2, 2))
def test_a_task_vector_that_is_added_can_be_taken_away(weight: float, scale: float) -> None:
    (tensor, *_), base = random_inputs("task_arithmetic")
    assert base is not None
    once = merge_tensors("task_arithmetic", [tensor], base, parameters={"lambda": scale}, each=[{"weight": weight}])
    shifted = once - scale * weight * (tensor - base)
    torch.testing.assert_close(shifted, base, rtol=1e-4, atol=1e-5)


def test_ties_on_the_example_of_the_paper() -> None:
    base = torch.zeros(4)
    tensors = [torch.tensor([3.0, -1.0, 0.5, 0.0]), torch.tensor([-1.0, -2.0, 0.4, 1.0])]
    merged = merge_tensors("ties", tensors, base, each=[{"weight": 1}, {"weight": 1}])
    torch.testing.assert_close(merged, torch.tensor([3.0, -1.5, 0.45, 1.0]))


def test_ties_of_vectors_that_agree_is_their_mean() -> None:
    base = torch.zeros(50)
    tensors = [torch.rand(50) + 0.1 for _ in range(3)]
    merged = merge_tensors("ties", tensors, base, each=[{"weight": 2}] * 3)
    torch.testing.assert_close(merged, torch.stack(tensors).mean(0))


@settings(max_examples=60, deadline=None)
@given(density=st.floats(0.0, 0.999), rows=st.integers(1, 9), tied=st.booleans(), seed=st.integers(0, 99))
def test_exactly_the_asked_number_of_largest_elements_is_kept(density: float, rows: int, tied: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(rows, 37, generator=generator)
    if tied:
        tensor = tensor.sign() * (tensor.abs() * 2).ceil()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ELEMENTS", 74)
        kept = merge_tensors("ties", [tensor], torch.zeros_like(tensor), each=[{"weight": 1, "density": density}])
    expected = 0 if density == 0 else max(1, int(density * tensor.numel()))
    assert int((kept != 0).sum()) == expected
    assert torch.equal(kept[kept != 0], tensor[kept != 0])
    if 0 < expected < tensor.numel():
        assert kept[kept != 0].abs().min() >= tensor[kept == 0].abs().max()


@settings(max_examples=40, deadline=None)
@given(density=st.floats(0.05, 0.9), gamma=st.floats(0, 0.3))
def test_breadcrumbs_drop_both_ends(density: float, gamma: float) -> None:
    tensor = torch.randn(7, 31)
    each = [{"weight": 1, "density": density, "gamma": gamma}]
    kept = merge_tensors("breadcrumbs", [tensor], torch.zeros_like(tensor), each=each)
    order = tensor.abs().flatten().sort().values
    count, top = int(density * tensor.numel()), int(gamma * tensor.numel())
    bottom = max(0, tensor.numel() - count - top)
    torch.testing.assert_close(kept[kept != 0].abs().sort().values, order[bottom : bottom + count])


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_by_probability_keeps_entries_divided_by_it_and_a_share_within_binomial_bounds(name: str) -> None:
    tensor = torch.randn(500, 400)
    merged = merge_tensors(
        name, [tensor], torch.zeros_like(tensor), parameters={"rescale_by": "probability"},
        each=[{"weight": 1, "density": 0.3}],
    )  # fmt: skip
    kept = merged != 0
    torch.testing.assert_close(merged[kept], tensor[kept] / 0.3)
    count, share = tensor.numel(), float(kept.float().mean())
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / count)


def test_dare_by_norm_keeps_the_norm_exactly() -> None:
    tensor = torch.randn(50, 40)
    merged = merge_tensors("dare_linear", [tensor], torch.zeros_like(tensor), each=[{"weight": 1, "density": 0.3}])
    assert float(merged.abs().sum()) == pytest.approx(float(tensor.abs().sum()), rel=1e-5)


def test_the_mean_over_seeds_of_dare_is_the_task_vector() -> None:
    tensor = torch.randn(20, 20)
    total = torch.zeros_like(tensor)
    rounds = 400
    for seed in range(rounds):
        total += merge_tensors(
            "dare_linear", [tensor], torch.zeros_like(tensor),
            parameters={"rescale_by": "probability", "seed": seed}, each=[{"weight": 1, "density": 0.5}],
        )  # fmt: skip
    deviation = (total / rounds - tensor) / tensor.abs()
    assert float(deviation.abs().max()) < 5.5 / math.sqrt(rounds)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dropping_everything_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError):
        merge_tensors(name, [torch.ones(3)], torch.zeros(3), each=[{"weight": 1, "density": 0}])


def test_dare_at_density_one_is_task_arithmetic_or_ties() -> None:
    tensors, base = random_inputs("dare_linear")
    each = [{"weight": weight} for weight in (0.5, -0.2, 0.9)]
    for name, plain in (("dare_linear", "task_arithmetic"), ("dare_ties", "ties")):
        expected = merge_tensors(plain, tensors, base, each=each, parameters={"normalize": False})
        torch.testing.assert_close(merge_tensors(name, tensors, base, each=each), expected)


def test_della_keeps_large_elements_more_often() -> None:
    tensor = torch.arange(1.0, 1001).repeat(200, 1)
    merged = merge_tensors(
        "della_linear", [tensor], torch.zeros_like(tensor), parameters={"rescale": False},
        each=[{"weight": 1, "density": 0.5, "epsilon": 0.3}],
    )  # fmt: skip
    shares = (merged != 0).float().mean(0)
    expected = 0.2 + 0.6 * torch.arange(1000) / 999
    assert float((shares - expected).abs().mean()) < 0.04
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.01)


def test_della_refuses_probabilities_outside_zero_and_one() -> None:
    with pytest.raises(InvalidInputError, match="epsilon"):
        merge_tensors("della", [torch.ones(3)], torch.zeros(3), each=[{"weight": 1, "density": 0.9, "epsilon": 0.2}])


def test_nearswap_swaps_what_is_near() -> None:
    base, other = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.01, 1.1, 3.0])
    merged = merge_tensors("nearswap", [other], base, parameters={"t": 0.05})
    torch.testing.assert_close(merged, torch.tensor([1.01, 1.05, 1.05]))
    assert merged[0] == other[0]


def test_karcher_of_two_is_the_middle_of_the_arc() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
    merged = merge_tensors("karcher", [a, b])
    torch.testing.assert_close(merged, torch.tensor([math.sqrt(2)] * 2), rtol=1e-5, atol=1e-5)
    assert torch.equal(merge_tensors("karcher", [torch.zeros(3)] * 2), torch.zeros(3))


def test_multislerp_of_two_is_near_slerp_and_refuses_what_cancels() -> None:
    a, b = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    merged = merge_tensors("multislerp", [a, b], each=[{"weight": 1}, {"weight": 1}])
    torch.testing.assert_close(merged, torch.tensor([1.0, 1.0, 0.0]) / math.sqrt(2), rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidInputError, match="cancel"):
        merge_tensors("multislerp", [a, a, -2 * a], each=[{"weight": weight} for weight in (1, 1, 2)])


@pytest.mark.parametrize(("flatten", "row_wise", "axis"), [(True, False, None), (False, False, -1), (False, True, 0)])
def test_nuslerp_walks_between_vectors_of_the_chosen_kind(flatten: bool, row_wise: bool, axis: int | None) -> None:
    a, b = torch.randn(6, 5), torch.randn(6, 5)
    merged = merge_tensors(
        "nuslerp", [a, b], each=[{"weight": 1}, {"weight": 3}],
        parameters={"nuslerp_flatten": flatten, "nuslerp_row_wise": row_wise},
    )  # fmt: skip
    dims = (0, 1) if axis is None else axis
    cosine = (a * b).sum(dims, keepdim=True) / (
        a.square().sum(dims, keepdim=True).sqrt() * b.square().sum(dims, keepdim=True).sqrt()
    )
    angle = torch.acos(cosine)
    expected = (torch.sin(0.25 * angle) * a + torch.sin(0.75 * angle) * b) / torch.sin(angle)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


def test_methods_say_what_they_need() -> None:
    with pytest.raises(InvalidInputError, match="base"):
        merge_tensors("ties", [torch.ones(2)], each=[{"weight": 1}])
    with pytest.raises(InvalidInputError, match="base"):
        merge_tensors("linear", [torch.ones(2)], torch.ones(2), each=[{"weight": 1}])
    with pytest.raises(InvalidInputError, match="2 models"):
        merge_tensors("slerp", [torch.ones(2)], parameters={"t": 0.5})
    with pytest.raises(InvalidInputError, match="weight"):
        merge_tensors("linear", [torch.ones(2)])
