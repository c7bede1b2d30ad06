"""Every method and parameter that mergekit has too, on small random models: the same tensors within rounding.

Judged with `dtype: float32`; task vectors are fp32 on both sides then. One process of the peer runs all cases.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from glue.checkpoints.reader import Checkpoint
from glue.merging.run import merge_file
from tests.support.models import VOCABULARY, tiny_tokenizer
from tests.support.peer import is_installed, run_peer

pytestmark = pytest.mark.skipif(not is_installed(), reason="the peer is not installed; run `make peer`")

SHAPE: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "initializer_range": 0.1,
}
ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, tie_word_embeddings=False)),
}


@dataclass(frozen=True)
class Case:
    """A merge: `each` are the parameters of the three models, `differing` the share of elements that may differ."""

    method: str
    shared: dict[str, Any] = field(default_factory=dict)
    each: tuple[dict[str, Any], ...] = ({}, {}, {})
    base: bool = True
    extra: dict[str, Any] = field(default_factory=dict)
    differing: float = 0.0

    def config(self, root: Path) -> dict[str, Any]:
        """The merge file's content, with absolute folders, which both programs read alike."""
        names = ("a", "b", "c")[: len(self.each)]
        models = [
            {"model": str(root / name), "parameters": parameters}
            for name, parameters in zip(names, self.each, strict=True)
        ]
        base = {"base_model": str(root / "base")} if self.base else {}
        config = {"merge_method": self.method, "models": models, "parameters": self.shared, "dtype": "float32"}
        return config | base | self.extra


WEIGHTS = ({"weight": 0.5}, {"weight": 0.3}, {"weight": -0.4})
GRADIENT = [{"filter": "self_attn", "value": [0, 0.5, 0.3, 1]}, {"filter": "mlp", "value": [1, 0.2]}, {"value": 0.4}]


def weighted(**more: Any) -> tuple[dict[str, Any], ...]:
    return tuple(weights | more for weights in WEIGHTS)


SELECTED = 0.005
CASES: dict[str, Case] = {
    "linear": Case("linear", each=WEIGHTS, base=False),
    "linear-sum": Case("linear", {"normalize": False}, each=WEIGHTS, base=False),
    "linear-gradients": Case(
        "linear",
        each=({"weight": [0.1, 0.7, 0.2]}, {"weight": GRADIENT}, {"weight": {"filter": "*", "value": 0.3}}),
        base=False,
    ),
    "linear-scientific": Case("linear", each=({"weight": "1e-1"}, {"weight": "5e-1"}), base=False),
    "slerp": Case("slerp", {"t": 0.35}, each=({},)),
    "slerp-gradients": Case("slerp", {"t": GRADIENT}, each=({},)),
    "task_arithmetic": Case("task_arithmetic", each=WEIGHTS),
    "task_arithmetic-normalized": Case("task_arithmetic", {"normalize": True, "lambda": 0.7}, each=WEIGHTS),
    "ties": Case("ties", each=WEIGHTS),
    "ties-trimmed": Case("ties", each=weighted(density=0.4), differing=SELECTED),
    "ties-densities": Case(
        "ties", {"lambda": 1.3}, each=tuple(w | {"density": [0.2, 0.9]} for w in WEIGHTS), differing=SELECTED
    ),
    "ties-sum": Case("ties", {"normalize": False, "int8_mask": True}, each=weighted(density=0.6), differing=SELECTED),
    "ties-rescaled": Case("ties", {"rescale": True}, each=weighted(density=0.3), differing=SELECTED),
    "ties-nothing": Case("ties", each=weighted(density=0.0)),
    "dare_ties": Case("dare_ties", each=WEIGHTS),
    "dare_ties-normalized": Case("dare_ties", {"normalize": True, "lambda": 0.9}, each=weighted(density=1.0)),
    "dare_linear": Case("dare_linear", each=WEIGHTS),
    "dare_linear-normalized": Case("dare_linear", {"normalize": True, "rescale": False}, each=WEIGHTS),
    "della": Case("della", each=weighted(epsilon=0.1)),
    "della-sum": Case("della", {"normalize": False, "lambda": 1.1}, each=WEIGHTS),
    "della_linear": Case("della_linear", each=WEIGHTS),
    "breadcrumbs": Case("breadcrumbs", each=weighted(density=0.5, gamma=0.05), differing=SELECTED),
    "breadcrumbs-defaults": Case("breadcrumbs", {"normalize": True}, each=weighted(density=0.9), differing=SELECTED),
    "breadcrumbs-rescaled": Case(
        "breadcrumbs", {"rescale": True}, each=weighted(density=0.5, gamma=0.2), differing=SELECTED
    ),
    "breadcrumbs_ties": Case("breadcrumbs_ties", each=weighted(density=0.5, gamma=0.05), differing=SELECTED),
    "model_stock": Case("model_stock"),
    "model_stock-filters": Case("model_stock", {"filter_wise": True}),
    "nuslerp": Case("nuslerp", each=({"weight": 0.3}, {"weight": 0.6}), base=False),
    "nuslerp-base": Case("nuslerp", each=({"weight": 0.3}, {"weight": 0.6})),
    "nuslerp-rows": Case("nuslerp", {"nuslerp_flatten": False}, each=({"weight": 0.3}, {"weight": 0.6})),
    "nuslerp-columns": Case(
        "nuslerp",
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
        each=({"weight": 0.3}, {"weight": 0.6}),
        base=False,
    ),
    "nuslerp-cancelling": Case("nuslerp", each=({"weight": 0.5}, {"weight": -0.5}), base=False),
    "multislerp": Case("multislerp", each=({"weight": 0.3}, {"weight": 0.6}, {"weight": 0.5}), base=False),
    "multislerp-weights": Case(
        "multislerp",
        {"normalize_weights": False, "eps": 1e-6},
        each=({"weight": 0.3}, {"weight": 0.6}, {"weight": 0.5}),
        base=False,
    ),
    "karcher": Case("karcher", base=False),
    "karcher-steps": Case("karcher", {"max_iter": 2, "tol": 1e-9}, base=False),
    "sce": Case("sce"),
    "sce-selected": Case("sce", {"select_topk": 0.3}, differing=SELECTED),
    "arcee_fusion": Case("arcee_fusion", each=({},), differing=SELECTED),
    "nearswap": Case("nearswap", {"t": 0.02}, each=({},)),
    "passthrough": Case("passthrough", each=({},), base=False),
    "passthrough-scaled": Case(
        "passthrough", each=({"scale": [{"filter": "o_proj", "value": 0.5}, {"value": 1.0}]},), base=False
    ),
}
RANDOM: dict[str, Case] = {
    "dare_ties-dropped": Case("dare_ties", each=weighted(density=0.5)),
    "dare_linear-dropped": Case("dare_linear", {"lambda": 0.8}, each=weighted(density=0.3)),
    "dare_linear-unscaled": Case("dare_linear", {"rescale": False}, each=weighted(density=0.3)),
    "della-dropped": Case("della", each=weighted(density=0.5, epsilon=0.3)),
    "della_linear-dropped": Case("della_linear", each=weighted(density=0.6, epsilon=0.2)),
}
STACKS: dict[str, dict[str, Any]] = {
    "stack": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 3]}]},
            {"sources": [{"model": "b", "layer_range": [1, 4], "parameters": {"scale": 0.9}}]},
        ],
    },
    "merged-slices": {
        "merge_method": "slerp",
        "base_model": "a",
        "parameters": {"t": [0.1, 0.9]},
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [2, 4]}]},
            {
                "sources": [{"model": "a", "layer_range": [2, 4]}, {"model": "c", "layer_range": [0, 2]}],
                "parameters": {"t": 0.3},
            },
        ],
    },
    "module": {
        "merge_method": "linear",
        "modules": {
            "default": {
                "models": [
                    {"model": "a", "parameters": {"weight": 0.2}},
                    {"model": "b", "parameters": {"weight": 0.9}},
                ]
            }
        },
    },
}


@dataclass(frozen=True)
class Pair:
    """What both programs made of one file."""

    ours: Path
    theirs: Path
    error: str | None


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Pair]:
    """Every case on every architecture through both programs."""
    root = tmp_path_factory.mktemp("parity")
    for architecture, build in ARCHITECTURES.items():
        _zoo(root / architecture, build)
    files = {}
    for architecture in ARCHITECTURES:
        for name, case in (CASES | RANDOM).items():
            files[architecture, name] = _file(root, architecture, name, case.config(root / architecture))
    for name, config in STACKS.items():
        files["llama", name] = _file(root, "llama", name, _placed(config, root / "llama") | {"dtype": "float32"})
    outs = {key: (root / f"{'-'.join(key)}-ours", root / f"{'-'.join(key)}-theirs") for key in files}
    errors = run_peer([(files[key], outs[key][1]) for key in files], root)
    torch.set_num_threads(1)
    for key, file in files.items():
        merge_file(file, outs[key][0], shard_bytes=10**9, seed=None, progress=lambda fraction, message: None)
    return {key: Pair(*outs[key], errors[str(outs[key][1])]) for key in files}


def _zoo(root: Path, build: Callable[[], PreTrainedModel]) -> None:
    torch.manual_seed(3)
    base = build()
    for name in ("base", "a", "b", "c"):
        model = build()
        model.load_state_dict(base.state_dict())
        if name != "base":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.02)
        model.save_pretrained(root / name)
        tiny_tokenizer(root / name)


def _file(root: Path, architecture: str, name: str, config: dict[str, Any]) -> Path:
    path = root / f"{architecture}-{name}.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def _placed(value: Any, root: Path) -> Any:
    if isinstance(value, list):
        return [_placed(part, root) for part in value]
    if not isinstance(value, dict):
        return value
    placed = {key: _placed(part, root) for key, part in value.items()}
    return placed | {key: str(root / value[key]) for key in ("model", "base_model") if key in value}


def _tensors(folder: Path) -> dict[str, Tensor]:
    with Checkpoint.open(folder) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.tensors}


def _same(pair: Pair, differing: float) -> None:
    assert pair.error is None
    ours, theirs = _tensors(pair.ours), _tensors(pair.theirs)
    # The peer stores a tied head beside its embedding.
    assert theirs.keys() - ours.keys() <= {"lm_head.weight"}
    apart = total = 0
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype == torch.float32
        assert tensor.shape == theirs[name].shape
        close = torch.isclose(tensor, theirs[name], rtol=2e-5, atol=2e-6)
        apart += int((~close).sum())
        total += tensor.numel()
    assert apart <= differing * total


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", CASES)
def test_methods_agree(pairs: dict[tuple[str, str], Pair], architecture: str, name: str) -> None:
    _same(pairs[architecture, name], CASES[name].differing)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", RANDOM)
def test_random_methods_agree_in_distribution(pairs: dict[tuple[str, str], Pair], architecture: str, name: str) -> None:
    """The generators differ, so shares, sizes and directions of what is left of the task vectors are compared."""
    pair = pairs[architecture, name]
    assert pair.error is None
    base = _tensors(pair.ours.parent / architecture / "base")
    ours, theirs = (_moves(_tensors(folder), base) for folder in (pair.ours, pair.theirs))
    assert float((ours == 0).float().mean()) == pytest.approx(float((theirs == 0).float().mean()), abs=0.01)
    assert float(ours.abs().mean()) == pytest.approx(float(theirs.abs().mean()), rel=0.02)
    assert float(ours.square().mean()) == pytest.approx(float(theirs.square().mean()), rel=0.04)
    assert float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1]) > 0.1


def _moves(tensors: dict[str, Tensor], base: dict[str, Tensor]) -> Tensor:
    matrices = [name for name in sorted(base) if base[name].dim() == 2]
    moves = torch.cat([(tensors[name] - base[name]).flatten() for name in matrices])
    return torch.where(moves.abs() < 1e-7, 0, moves)


@pytest.mark.parametrize("name", STACKS)
def test_slices_and_modules_agree(pairs: dict[tuple[str, str], Pair], name: str) -> None:
    pair = pairs["llama", name]
    _same(pair, 0.0)
    model, loading = AutoModelForCausalLM.from_pretrained(pair.ours, output_loading_info=True)
    assert not any(loading.values())
    assert model(torch.arange(5).unsqueeze(0)).logits.isfinite().all()
