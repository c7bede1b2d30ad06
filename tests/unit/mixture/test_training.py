"""Routers that learn: what prototypes cannot tell apart, determinism, and the same arithmetic in the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import relu

from glue.mixture.block import build_block_mixture
from glue.mixture.load import load_model
from glue.mixture.router import RouterWeights, pool_features, prototypes, read_embedding
from glue.mixture.training import (
    RouterTraining,
    train_layer_routers,
    train_router,
    untrained_layer_routers,
    untrained_router,
)
from glue.mixture.writing import ExpertSource
from tests.support.mixtures import mix, prompts, silent
from tests.support.models import tiny_llama, tiny_neox

QUICK = RouterTraining(inner_size=16, steps=200)
LINEAR = RouterTraining(inner_size=0, steps=200)


def logits(router: RouterWeights, features: Tensor) -> Tensor:
    inputs = features - router.centre
    if router.inner is not None:
        inputs = relu(inputs @ router.inner.weight.T + router.inner.bias)
    return inputs @ router.weight.T


@pytest.mark.parametrize("training", [QUICK, LINEAR])
@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_it_learns_whose_context_is_whose(training: RouterTraining, size: float) -> None:
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(3, 8, generator=generator)
    assignment = [index % 3 for index in range(60)]
    features = size * (centres[assignment] + 0.2 * torch.randn(60, 8, generator=generator))
    router = train_router(features, [*assignment[:-1], None], 3, training)
    assert logits(router, features).argmax(-1).tolist() == assignment


def test_two_layers_tell_apart_what_no_line_can() -> None:
    features = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    assignment = [0, 0, 1, 1]
    # The means of both experts coincide, so prototypes have no direction.
    assert prototypes(features, assignment, 2).weight.abs().max() == 0
    assert logits(train_router(features, assignment, 2, QUICK), features).argmax(-1).tolist() == assignment


def test_rare_experts_count_as_much() -> None:
    features = torch.cat([torch.tensor([[1.0, 0.1]]).repeat(50, 1), torch.tensor([[1.0, -0.1]])])
    assignment = [0] * 50 + [1]
    assert logits(train_router(features, assignment, 2, LINEAR), features).argmax(-1).tolist() == assignment


def test_equal_seeds_give_equal_routers_and_leave_the_worlds_alone() -> None:
    features = torch.randn(12, 4, generator=torch.Generator().manual_seed(2))
    state = torch.get_rng_state()
    first, second = (train_router(features, [0, 1] * 6, 2, QUICK) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.inner is not None
    assert second.inner is not None
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.inner.weight, second.inner.weight)


@pytest.mark.parametrize("training", [QUICK, LINEAR])
def test_an_untrained_router_prefers_nobody_much(training: RouterTraining) -> None:
    features = 3 + 1e-4 * torch.randn(50, 8, generator=torch.Generator().manual_seed(4))
    router, same = (untrained_router(features, 3, training) for _ in range(2))
    assert torch.equal(router.weight, same.weight)
    found = logits(router, features)
    assert 0.01 < found.std() < 1.5
    layers = untrained_layer_routers(torch.stack([features, 2 * features], dim=1), 3, training)
    assert torch.equal(layers.weight[0], router.weight)
    assert layers.has_shape(3, 8, (2,))


def test_an_expert_without_contexts_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"\[1\]"):
        train_router(torch.ones(2, 4), [0, 0], 2, QUICK)


@torch.no_grad()
def test_a_model_level_mixture_with_two_layers(tmp_path: Path) -> None:
    folders = [tiny_llama(tmp_path / "a"), tiny_neox(tmp_path / "b")]
    ids = prompts(10, 6)
    features = pool_features(read_embedding(folders[0]), ids)
    router = train_router(features, [0, 1] * 5, 2, QUICK)
    model: Any = load_model(mix(tmp_path / "mixture", folders, router), torch.float32, "cpu")
    torch.testing.assert_close(model.sample_router(ids), logits(router, features), rtol=1e-4, atol=1e-4)
    assert model.route(ids).argmax(-1).tolist() == [0, 1] * 5
    half: Any = load_model(tmp_path / "mixture", torch.bfloat16, "cpu")
    assert torch.equal(half.route(ids), model.route(ids))


@torch.no_grad()
def test_a_block_level_mixture_with_two_layers(tmp_path: Path) -> None:
    sources = [ExpertSource(name, tiny_llama(tmp_path / name, seed=seed)) for seed, name in enumerate("ab")]
    base: Any = load_model(sources[0].folder, torch.float32, "cpu")
    ids = prompts(10, 6)
    states = torch.stack(base(ids, output_hidden_states=True).hidden_states[:-1], dim=1).mean(2)
    router = train_layer_routers(states, [0, 1] * 5, 2, QUICK)
    own = {"dtype": "float32", "shard_bytes": 1_000_000, "token": 1, "progress": silent}
    build_block_mixture(tmp_path / "m", sources, router, sources[0], sources[0].folder, top_k=1, **own)
    model: Any = load_model(tmp_path / "m", torch.float32, "cpu")
    assert model.route(ids)[:, 0].argmax(-1).tolist() == [0, 1] * 5
    answer = model.generate(ids, max_new_tokens=6, min_new_tokens=6)
    assert torch.equal(answer, model.generate(ids, max_new_tokens=6, min_new_tokens=6, use_cache=False))
