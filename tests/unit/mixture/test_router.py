"""Router weights from contexts: where they point, and that features are pooled as at inference."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from glue.mixture.router import RouterWeights, pool_features, prototypes, read_embedding
from tests.support.mixtures import padded, prompts
from tests.support.models import tiny_llama, tiny_neox


def logits(router: RouterWeights, features: torch.Tensor) -> torch.Tensor:
    return (features - router.centre) @ router.weight.T


def test_features_are_the_masked_mean() -> None:
    embedding = torch.arange(12.0).reshape(6, 2)
    ids, mask = torch.tensor([[0, 1, 3], [2, 5, 5]]), torch.tensor([[0, 1, 1], [1, 0, 0]])
    assert pool_features(embedding, ids, mask).tolist() == [[4.0, 5.0], [4.0, 5.0]]
    assert pool_features(embedding, ids[1:]).tolist() == [[8.0, 9.0]]


def test_features_of_nothing_are_zero() -> None:
    assert pool_features(torch.ones(3, 2), torch.tensor([[1, 2]]), torch.tensor([[0, 0]])).tolist() == [[0.0, 0.0]]


def test_the_model_pools_in_the_same_way(model: Any, built: Any) -> None:
    ids, mask = padded([prompts(1, length, seed=length)[0] for length in (3, 9, 5)], "left")
    features = pool_features(read_embedding(built.experts[0]), ids, mask)
    router = model.sample_router
    expected = torch.stack([(router.weight * (feature - router.centre)).sum(-1) for feature in features])
    assert torch.equal(model.sample_router(ids, mask), expected)


@given(st.integers(2, 5), st.integers(0, 99))
def test_rows_are_unit_directions_that_balance(experts: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(experts * 3, 8, generator=generator)
    assignment = [index % experts for index in range(len(features))]
    router = prototypes(features, assignment, experts)
    means = torch.stack([features[index::experts].mean(0) for index in range(experts)])
    torch.testing.assert_close(router.weight.norm(dim=-1), torch.ones(experts))
    torch.testing.assert_close(router.centre, means.mean(0))
    # The mean context of each expert lies in the direction of its own row more than of any other.
    assert logits(router, means).argmax(-1).tolist() == list(range(experts))


def test_unassigned_contexts_and_their_number_do_not_count() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
    router = prototypes(features, [0, 0, 0, 1, None], 2)
    assert router.centre.tolist() == [0.5, 0.5]
    assert logits(router, features[[0, 3]]).argmax(-1).tolist() == [0, 1]


def test_experts_with_equal_contexts_get_no_direction() -> None:
    router = prototypes(torch.ones(2, 4), [0, 1], 2)
    assert router.weight.tolist() == [[0.0] * 4] * 2


def test_an_expert_without_contexts_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"\[1\]"):
        prototypes(torch.ones(2, 4), [0, None], 2)
    with pytest.raises(ValueError, match="2 features"):
        prototypes(torch.ones(2, 4), [0], 1)


@pytest.mark.parametrize(
    ("kind", "name"), [(tiny_llama, "model.embed_tokens.weight"), (tiny_neox, "gpt_neox.embed_in.weight")]
)
def test_the_embedding_is_found_in_any_architecture(kind: Any, name: str, tmp_path: Path) -> None:
    folder = kind(tmp_path / "a")
    assert torch.equal(read_embedding(folder), load_file(folder / "model.safetensors")[name])
