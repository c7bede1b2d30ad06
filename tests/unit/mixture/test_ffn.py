"""FFN-level mixtures: stock classes load them, and in closed cases they compute what they must."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glue.checkpoints.manifest import build_manifest
from glue.mixture.ffn import build_ffn_mixture
from glue.mixture.gates import random_gates
from glue.mixture.load import load_model
from glue.mixture.sources import NO_SHARED, UNCHANGED, Adjustment, ExpertSource, SharedExperts
from glue.specs.errors import IncompatibleModelsError
from tests.support.mixtures import prompts, silent, tiny_mistral, tiny_qwen2
from tests.support.models import tiny_llama, tiny_neox, tiny_qwen3

Kind = Callable[..., Path]
LAYERS, WIDTH = 2, 16
TARGETS = [
    pytest.param(tiny_llama, "MixtralForCausalLM", id="llama"),
    pytest.param(tiny_mistral, "MixtralForCausalLM", id="mistral"),
    pytest.param(tiny_qwen2, "Qwen2MoeForCausalLM", id="qwen2"),
    pytest.param(tiny_qwen3, "Qwen3MoeForCausalLM", id="qwen3"),
]
# A sum over experts and a fused product round differently from one dense MLP.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


def mixed(
    out: Path,
    folders: list[Path],
    *,
    base: Path | None = None,
    gates: Tensor | None = None,
    top_k: int = 2,
    dense_layers: int = 0,
    dtype: str = "float32",
    shard_bytes: int = 1_000_000,
    shared: SharedExperts = NO_SHARED,
    adjustment: Adjustment = UNCHANGED,
) -> Path:
    build_ffn_mixture(
        out,
        [ExpertSource(folder.name, folder, adjustment=adjustment) for folder in folders],
        random_gates(LAYERS, len(folders), WIDTH, seed=5) if gates is None else gates,
        ExpertSource("base", base) if base else None,
        folders[0],
        shared=shared,
        dense_layers=dense_layers,
        top_k=top_k,
        dtype=dtype,
        shard_bytes=shard_bytes,
        token=1,
        progress=silent,
    )
    return out


def logits(folder: Path, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return load_model(folder, torch.float32, "cpu")(ids).logits  # type: ignore[no-any-return]


def edited(folder: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    changed = {name: change(name, value).contiguous() for name, value in tensors.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("kind", "architecture"), TARGETS)
def test_identical_experts_are_the_dense_model(kind: Kind, architecture: str, tmp_path: Path) -> None:
    dense = kind(tmp_path / "dense")
    folder = mixed(tmp_path / "mixture", [dense] * 3)
    assert type(load_model(folder, torch.float32, "cpu")).__name__ == architecture
    ids = prompts(3, 20)
    torch.testing.assert_close(logits(folder, ids), logits(dense, ids), **ROUNDING)


@pytest.mark.parametrize(("kind", "architecture"), TARGETS)
def test_a_gate_that_always_chooses_one_gives_its_mlps_on_the_base(
    kind: Kind, architecture: str, tmp_path: Path
) -> None:
    base, first, second = kind(tmp_path / "base", seed=1), kind(tmp_path / "a", seed=2), kind(tmp_path / "b", seed=3)
    # Equal logits everywhere: the first of equals is asked.
    folder = mixed(tmp_path / "mixture", [second, first], base=base, gates=torch.zeros(LAYERS, 2, WIDTH), top_k=1)
    mlps = load_file(second / "model.safetensors")
    expected = edited(base, lambda name, value: mlps[name] if ".mlp." in name else value)
    ids = prompts(3, 20)
    torch.testing.assert_close(logits(folder, ids), logits(expected, ids), **ROUNDING)


@pytest.mark.parametrize(("kind", "architecture"), TARGETS)
def test_a_uniform_gate_over_all_is_the_mean_of_the_mlps(kind: Kind, architecture: str, tmp_path: Path) -> None:
    base = kind(tmp_path / "base")
    folders = [
        edited(kind(tmp_path / name), lambda tensor, value, factor=factor: _scaled(tensor, value, factor))
        for name, factor in (("a", 0.5), ("b", 2.0))
    ]
    folder = mixed(tmp_path / "mixture", folders, base=base, gates=torch.zeros(LAYERS, 2, WIDTH))
    # An MLP is linear in its down projection: the mean of the outputs is that of the mean of these.
    expected = edited(base, lambda tensor, value: _scaled(tensor, value, 1.25))
    ids = prompts(3, 20)
    torch.testing.assert_close(logits(folder, ids), logits(expected, ids), **ROUNDING)


def _scaled(tensor: str, value: Tensor, factor: float) -> Tensor:
    return value * factor if "down_proj" in tensor else value


@pytest.mark.parametrize("kind", [tiny_qwen2, tiny_qwen3])
def test_a_hybrids_bottom_is_the_bases(kind: Kind, tmp_path: Path) -> None:
    base, expert = kind(tmp_path / "base", seed=1), kind(tmp_path / "a", seed=2)
    folder = mixed(tmp_path / "mixture", [expert] * 2, base=base, dense_layers=1)
    mlps = load_file(expert / "model.safetensors")
    expected = edited(base, lambda name, value: mlps[name] if "layers.1.mlp." in name else value)
    ids = prompts(3, 20)
    torch.testing.assert_close(logits(folder, ids), logits(expected, ids), **ROUNDING)


@pytest.mark.parametrize("dense", [1, 2])
def test_hybrids_of_llamas_are_qwens(dense: int, tmp_path: Path) -> None:
    base, expert = tiny_llama(tmp_path / "base", seed=1), tiny_llama(tmp_path / "a", seed=2)
    folder = mixed(tmp_path / "m", [expert] * 2, base=base, dense_layers=dense)
    assert type(load_model(folder, torch.float32, "cpu")).__name__ == "Qwen2MoeForCausalLM"
    mlps = load_file(expert / "model.safetensors")
    routed = tuple(f"layers.{layer}.mlp." for layer in range(dense, LAYERS))
    expected = edited(base, lambda name, value: mlps[name] if any(part in name for part in routed) else value)
    ids = prompts(3, 20)
    torch.testing.assert_close(logits(folder, ids), logits(expected, ids), **ROUNDING)


def test_mixtral_has_no_dense_layers(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleModelsError, match="MixtralForCausalLM has experts in every layer"):
        mixed(tmp_path / "m", [tiny_mistral(tmp_path / "a")] * 2, dense_layers=1)


@pytest.mark.parametrize("kind", [tiny_llama, tiny_qwen2])
def test_a_shared_expert_answers_as_its_gate_says(kind: Kind, tmp_path: Path) -> None:
    base, zero = kind(tmp_path / "base", seed=1), kind(tmp_path / "zero", seed=1)
    edited(zero, lambda name, value: value * 0 if "down_proj" in name else value)
    twice = edited(kind(tmp_path / "twice", seed=1), lambda name, value: value * 2 if "down_proj" in name else value)
    # A gate of zeros lets half through.
    shared = SharedExperts((ExpertSource("twice", twice),), torch.zeros(LAYERS, 1, WIDTH))
    folder = mixed(tmp_path / "m", [zero] * 2, base=base, shared=shared)
    assert type(load_model(folder, torch.float32, "cpu")).__name__ == "Qwen2MoeForCausalLM"
    ids = prompts(3, 20)
    torch.testing.assert_close(logits(folder, ids), logits(base, ids), **ROUNDING)


@pytest.mark.parametrize(("kind", "told"), [(tiny_llama, "has no shared experts"), (tiny_qwen2, "by a gate")])
def test_shared_experts_that_no_stock_architecture_has_are_refused(kind: Kind, told: str, tmp_path: Path) -> None:
    folder = kind(tmp_path / "a")
    with pytest.raises(IncompatibleModelsError, match=told):
        mixed(tmp_path / "m", [folder] * 2, shared=SharedExperts((ExpertSource("a", folder),)))


def test_noise_and_scale_change_the_experts_alone(tmp_path: Path) -> None:
    base, expert = tiny_llama(tmp_path / "base", seed=1), tiny_llama(tmp_path / "a", seed=2)
    half = Adjustment(residual_scale=0.5)
    scaled = mixed(tmp_path / "m", [expert] * 2, base=base, adjustment=half)
    mlps = load_file(expert / "model.safetensors")
    source = load_file(scaled / "model.safetensors")
    prefix = "model.layers.1"
    assert torch.equal(
        source[f"{prefix}.block_sparse_moe.experts.1.w2.weight"], mlps[f"{prefix}.mlp.down_proj.weight"] * 0.5
    )
    assert torch.equal(source[f"{prefix}.block_sparse_moe.experts.1.w1.weight"], mlps[f"{prefix}.mlp.gate_proj.weight"])
    noisy = Adjustment(noise_scale=0.1, seed="1/0")
    tensors = load_file(mixed(tmp_path / "n", [expert] * 2, base=base, adjustment=noisy) / "model.safetensors")
    moved = torch.cat(
        [
            (tensors[name] - source[name] * (2 if "w2" in name else 1)).flatten()
            for name in source
            if ".experts.0." in name
        ]
    )
    assert moved.std().item() == pytest.approx(0.1, rel=0.05)
    again = load_file(mixed(tmp_path / "o", [expert] * 2, base=base, adjustment=noisy) / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in tensors.items())
    assert torch.equal(tensors["model.embed_tokens.weight"], source["model.embed_tokens.weight"])


def test_without_a_base_the_rest_is_the_mean(tmp_path: Path) -> None:
    folders = [tiny_llama(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    tensors = load_file(mixed(tmp_path / "mixture", folders) / "model.safetensors")
    sources = [load_file(folder / "model.safetensors") for folder in folders]
    for name in sources[0]:
        if ".mlp." not in name:
            mean = sum(source[name].double() for source in sources) / 3
            assert torch.equal(tensors[name], mean.float())


def test_mixtral_is_written_with_its_own_names(tmp_path: Path) -> None:
    folders = [tiny_llama(tmp_path / "a", seed=1), tiny_llama(tmp_path / "b", seed=2)]
    gates = random_gates(LAYERS, 2, WIDTH, seed=9)
    tensors = load_file(mixed(tmp_path / "mixture", folders, base=folders[0], gates=gates) / "model.safetensors")
    source = load_file(folders[1] / "model.safetensors")
    prefix = "model.layers.1.block_sparse_moe"
    for target, part in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        expected = source[f"model.layers.1.mlp.{part}.weight"]
        assert torch.equal(tensors[f"{prefix}.experts.1.{target}.weight"], expected)
    assert torch.equal(tensors[f"{prefix}.gate.weight"], gates[1])
    assert "lm_head.weight" not in tensors


def test_the_window_and_the_heads_of_the_dense_model_stay(tmp_path: Path) -> None:
    config = json.loads((mixed(tmp_path / "m", [tiny_mistral(tmp_path / "a")] * 2) / "config.json").read_text())
    assert (config["sliding_window"], config["num_local_experts"], config["num_experts_per_tok"]) == (8, 2, 2)
    wide = tiny_qwen3(tmp_path / "q", head_dim=12)
    ids = prompts(2, 9)
    torch.testing.assert_close(logits(mixed(tmp_path / "w", [wide] * 2), ids), logits(wide, ids), **ROUNDING)


def test_qwen2_has_a_silent_shared_expert(tmp_path: Path) -> None:
    tensors = load_file(mixed(tmp_path / "m", [tiny_qwen2(tmp_path / "a")] * 2) / "model.safetensors")
    shared = [value for name, value in tensors.items() if "shared_expert" in name]
    assert len(shared) == 4 * LAYERS
    assert all((value == 0).all() for value in shared)


@pytest.mark.parametrize(("kind", "architecture"), TARGETS)
def test_it_generates_with_its_cache(kind: Kind, architecture: str, tmp_path: Path) -> None:
    folders = [kind(tmp_path / "a", seed=1), kind(tmp_path / "b", seed=2)]
    model: Any = load_model(mixed(tmp_path / "mixture", folders), torch.float32, "cpu")
    ids = prompts(3, 12)
    cached = model.generate(ids, max_new_tokens=8, min_new_tokens=8)
    assert torch.equal(cached, model.generate(ids, max_new_tokens=8, min_new_tokens=8, use_cache=False))


def test_equal_inputs_give_equal_bytes_and_a_killed_build_goes_on(tmp_path: Path) -> None:
    folders = [tiny_llama(tmp_path / "a", seed=1), tiny_llama(tmp_path / "b", seed=2)]
    before = build_manifest(mixed(tmp_path / "one", folders, shard_bytes=10_000))
    two = mixed(tmp_path / "two", folders, shard_bytes=10_000)
    assert build_manifest(two) == before
    sorted(two.glob("*.safetensors"))[1].unlink()
    assert build_manifest(mixed(two, folders, shard_bytes=10_000)) == before


def test_half_precision_is_told_in_the_config(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "m", [tiny_llama(tmp_path / "a")] * 2, dtype="bfloat16")
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    neox, llama = tiny_neox(tmp_path / "neox"), tiny_llama(tmp_path / "llama")
    with pytest.raises(IncompatibleModelsError, match="no stock mixture exists for gpt_neox"):
        mixed(tmp_path / "m", [neox, neox])
    with pytest.raises(IncompatibleModelsError, match="differ in architecture"):
        mixed(tmp_path / "m", [llama, tiny_llama(tmp_path / "wide", intermediate_size=48)])
    with pytest.raises(IncompatibleModelsError, match="differ in architecture"):
        mixed(tmp_path / "m", [llama, llama], base=tiny_llama(tmp_path / "theta", rope_theta=5000.0))
    with pytest.raises(IncompatibleModelsError, match=r"no place for .*bias"):
        mixed(tmp_path / "m", [tiny_llama(tmp_path / "bias", attention_bias=True)] * 2)
    with pytest.raises(IncompatibleModelsError, match="slides its window"):
        mixed(tmp_path / "m", [tiny_qwen3(tmp_path / "slide", use_sliding_window=True, max_window_layers=1)] * 2)


def test_embeddings_of_other_lengths_need_a_base(tmp_path: Path) -> None:
    longer = tiny_llama(tmp_path / "longer", vocab_size=104)
    llama = tiny_llama(tmp_path / "llama")
    with pytest.raises(IncompatibleModelsError, match="embed_tokens"):
        mixed(tmp_path / "m", [llama, longer])
    ids = prompts(2, 8)
    assert logits(mixed(tmp_path / "n", [llama, longer], base=llama), ids).shape[-1] == 99


def test_numbers_that_do_not_fit_are_a_mistake(tmp_path: Path) -> None:
    llama = tiny_llama(tmp_path / "a")
    with pytest.raises(ValueError, match=r"\(2, 2, 16\)"):
        mixed(tmp_path / "m", [llama, llama], gates=torch.zeros(1, 2, WIDTH))
    with pytest.raises(ValueError, match="1 to 2"):
        mixed(tmp_path / "m", [llama, llama], top_k=3)
    with pytest.raises(ValueError, match="can be dense"):
        mixed(tmp_path / "m", [llama, llama], dense_layers=3)
