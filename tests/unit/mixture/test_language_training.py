"""Routers that learn from the language-model loss: right routing, frozen experts, the same bytes after a kill."""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from glue.mixture.block import build_block_mixture
from glue.mixture.build import build_fused
from glue.mixture.ffn import build_ffn_mixture
from glue.mixture.ffn_own import build_own_ffn_mixture
from glue.mixture.language_training import LanguageTraining, Trained, balancing_term, train_routers
from glue.mixture.load import load_model
from glue.mixture.router import InnerLayer, RouterWeights, pool_features, read_embedding
from glue.mixture.training_text import Example
from glue.mixture.watched_routers import WatchedRouters
from glue.mixture.writing import ExpertSource
from tests.support.mixtures import mix, prompts, silent
from tests.support.models import tiny_llama

QUICK = LanguageTraining(
    steps=30, learning_rate=0.3, batch=8, accumulate=1, schedule="cosine", warmup=0.1, balance=0.01,
    autocast=False, save_every=7, seed=0,
)  # fmt: skip
OWN: dict[str, Any] = {"dtype": "float32", "shard_bytes": 1_000_000, "token": 1, "progress": silent}


def planted(experts: Sequence[Path]) -> list[Example]:
    """Prompts of two alphabets, each answered by the expert of its own."""
    examples = []
    for index, folder in enumerate(experts):
        expert: Any = load_model(folder, torch.float32, "cpu")
        for ids in prompts(12, 6, seed=index) % 20 + 10 + 40 * index:
            answer = expert.generate(ids[None], max_new_tokens=8, min_new_tokens=8, do_sample=False)
            examples.append(Example(tuple(answer[0].tolist()), 6))
    return examples


def undecided(*decisions: int) -> RouterWeights:
    return RouterWeights(torch.zeros(*decisions, 2, 16), torch.zeros(*decisions, 16))


def two_layers() -> RouterWeights:
    generator = torch.Generator().manual_seed(3)
    inner = InnerLayer(torch.randn(8, 16, generator=generator), torch.zeros(8))
    return RouterWeights(0.01 * torch.randn(2, 8, generator=generator), torch.zeros(16), inner)


def model_level(out: Path, experts: list[Path], router: RouterWeights) -> None:
    mix(out, experts, router)


def block_level(out: Path, experts: list[Path]) -> None:
    sources = [ExpertSource(folder.name, folder) for folder in experts]
    build_block_mixture(out, sources, undecided(1), sources[0], experts[0], top_k=1, decide_once=True, **OWN)


def ffn_level(out: Path, experts: list[Path]) -> None:
    sources = [ExpertSource(folder.name, folder) for folder in experts]
    build_ffn_mixture(out, sources, torch.zeros(2, 2, 16), None, experts[0], top_k=2, **OWN)


def own_ffn_level(out: Path, experts: list[Path], *, routes_samples: bool) -> None:
    sources = [ExpertSource(folder.name, folder) for folder in experts]
    own = OWN | {"routes_samples": routes_samples, "top_k": 1}
    build_own_ffn_mixture(out, sources, undecided(2), None, experts[0], **own)


def token_gate(out: Path, experts: list[Path]) -> None:
    build_fused(out, [ExpertSource(folder.name, folder) for folder in experts], experts[0], **OWN)


LEVELS: dict[str, Callable[[Path, list[Path]], None]] = {
    "model": partial(model_level, router=undecided()),
    "model, two layers": partial(model_level, router=two_layers()),
    "token gate": token_gate,
    "block": block_level,
    "ffn": ffn_level,
    "ffn, tokens": partial(own_ffn_level, routes_samples=False),
    "ffn, samples": partial(own_ffn_level, routes_samples=True),
}


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("experts")
    return [tiny_llama(root / name, seed=seed) for seed, name in enumerate("ab")]


@pytest.fixture(scope="module")
def examples(experts: list[Path]) -> list[Example]:
    return planted(experts)


@pytest.fixture(scope="module", params=LEVELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, experts: list[Path]) -> Path:
    out = tmp_path_factory.mktemp("level") / "mixture"
    LEVELS[request.param](out, experts)
    return out


def trained(folder: Path, examples: list[Example], training: LanguageTraining, state: Path) -> tuple[Any, Trained]:
    model: Any = load_model(folder, torch.float32, "cpu")
    return model, train_routers(model, examples, training, state, 1, silent)


def routers_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in WatchedRouters(model).parameters.items()}


def test_the_loss_falls_and_nothing_but_routers_changes(folder: Path, examples: list[Example], tmp_path: Path) -> None:
    before: Any = load_model(folder, torch.float32, "cpu")
    model, found = trained(folder, examples, QUICK, tmp_path / "state")
    assert found.records[-1].loss < found.records[0].loss
    assert [found.records[0].step, found.records[-1].step] == [0, 29]
    names = set(routers_of(model))
    assert names
    for (name, old), new in zip(before.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(old, new) == (name not in names), name


@pytest.mark.parametrize("router", [undecided(), two_layers()])
def test_each_domain_comes_to_its_expert(
    router: RouterWeights, experts: list[Path], examples: list[Example], tmp_path: Path
) -> None:
    ids = torch.tensor([example.ids[:6] for example in examples])
    centred = replace(router, centre=pool_features(read_embedding(experts[0]), ids).mean(0))
    model, found = trained(mix(tmp_path / "mixture", experts, centred), examples, QUICK, tmp_path / "state")
    assert model.route(ids).argmax(-1).tolist() == [0] * 12 + [1] * 12
    assert model.config.experts_per_token == 1
    assert found.shares["sample_router"] == pytest.approx((0.5, 0.5), abs=0.2)


def test_a_killed_run_ends_in_the_same_bytes(folder: Path, examples: list[Example], tmp_path: Path) -> None:
    _, found = trained(folder, examples, QUICK, tmp_path / "whole")
    child = os.fork()
    if child == 0:

        def kill(fraction: float, text: str) -> None:
            if fraction > 0.6:
                os.kill(os.getpid(), signal.SIGKILL)

        train_routers(load_model(folder, torch.float32, "cpu"), examples, QUICK, tmp_path / "killed", 1, kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "killed").read_bytes() != (tmp_path / "whole").read_bytes()
    assert trained(folder, examples, QUICK, tmp_path / "killed")[1] == found
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_accumulated_batches_are_one_large_batch(folder: Path, examples: list[Example], tmp_path: Path) -> None:
    large = replace(QUICK, steps=6, balance=0.5)
    small = replace(large, batch=4, accumulate=2)
    (one, found), (two, same) = (trained(folder, examples, each, tmp_path / str(each.batch)) for each in (large, small))
    for name, values in routers_of(one).items():
        torch.testing.assert_close(values, routers_of(two)[name], rtol=1e-4, atol=1e-5)
    assert [each.loss for each in found.records] == pytest.approx([each.loss for each in same.records], rel=1e-5)


def test_balance_keeps_an_expert_that_the_loss_alone_would_leave(
    experts: list[Path], examples: list[Example], tmp_path: Path
) -> None:
    folder = mix(tmp_path / "mixture", experts, undecided())
    one_sided = examples[:12]
    shares = {}
    for balance in (0.0, 20.0):
        training = replace(QUICK, balance=balance, warmup=0.0)
        shares[balance] = trained(folder, one_sided, training, tmp_path / str(balance))[1].shares["sample_router"]
    assert shares[0.0] == (1.0, 0.0)
    assert min(shares[20.0]) > 0.2


def test_half_precision_learns_the_same_and_leaves_routers_in_single(
    folder: Path, examples: list[Example], tmp_path: Path
) -> None:
    model: Any = load_model(folder, torch.bfloat16, "cpu")
    found = train_routers(model, examples, replace(QUICK, autocast=True), tmp_path / "state", 1, silent)
    assert found.records[-1].loss < found.records[0].loss
    assert {values.dtype for values in routers_of(model).values()} == {torch.float32}


def test_a_model_without_routers_is_a_mistake(experts: list[Path], examples: list[Example], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no router"):
        trained(experts[0], examples, QUICK, tmp_path / "state")


def test_the_balancing_term_of_even_and_one_sided_routing() -> None:
    assert balancing_term([100 * torch.eye(4)], torch.full((1, 4), 0.25)).item() == pytest.approx(1.0)
    assert balancing_term([torch.tensor([[100.0, 0.0]] * 3)], torch.tensor([[1.0, 0.0]])).item() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("cosine", [0.5, 1, 1, 0.75, 0.25]), ("linear", [0.5, 1, 1, 2 / 3, 1 / 3]), ("constant", [0.5, 1, 1, 1, 1])],
)
def test_rates_rise_and_fall(schedule: Any, rates: list[float]) -> None:
    training = replace(QUICK, steps=5, learning_rate=1.0, warmup=0.4, schedule=schedule)
    assert [training.rate(step) for step in range(5)] == pytest.approx(rates)
