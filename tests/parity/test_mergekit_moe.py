"""mergekit-moe on the same file and seed: the same tensors, gate vectors included, up to its half precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM

from glue.mixture.run import mix_file
from tests.support.mixtures import silent, tiny_mistral, tiny_qwen2
from tests.support.models import tiny_llama, tiny_qwen3
from tests.support.peer import is_installed, run_peer

pytestmark = pytest.mark.skipif(not is_installed(), reason="the peer is not installed; run `make peer`")

SEED = 7
PROMPTS = [("12+3=", "9*9="), ("def f(x):", "return")]
KINDS = {"llama": tiny_llama, "mistral": tiny_mistral, "qwen3": tiny_qwen3}
MODES = ("hidden", "cheap_embed", "random", "uniform_random")
SHARED = [{"positive_prompts": ["Once upon"], "negative_prompts": ["12+3="]}]
QWENS = ("qwen2-shared", "llama-shared", "llama-qwen")
# mergekit runs the base in bfloat16; its gates then point elsewhere by this much, and its cosine with ours is at least
HALF_PRECISION = 0.9995


def config(root: Path, kind: str, mode: str, **changes: Any) -> dict[str, Any]:
    experts = [
        {"source_model": str(root / f"{kind}-{name}"), "positive_prompts": list(texts)}
        for name, texts in zip("ab", PROMPTS, strict=True)
    ]
    base = {"base_model": str(root / f"{kind}-base"), "gate_mode": mode, "dtype": "float32", "experts_per_token": 2}
    return base | {"experts": experts} | changes


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """For each case our tensors and the peer's."""
    root = tmp_path_factory.mktemp("moe")
    cases: dict[str, dict[str, Any]] = {}
    for kind, save in KINDS.items():
        for seed, name in enumerate(("base", "a", "b")):
            save(root / f"{kind}-{name}", seed=seed, tie_word_embeddings=False)
        cases |= {f"{kind}-{mode}": config(root, kind, mode) for mode in MODES}
    for seed, name in enumerate(("base", "a", "b")):
        tiny_qwen2(root / f"qwen2-{name}", seed=seed)
    cases["padded"] = config(root, "llama", "hidden_avg")
    cases |= shared_cases(root)
    pairs = []
    for name, case in cases.items():
        (root / f"{name}.yml").write_text(yaml.safe_dump(case))
        mix_file(root / f"{name}.yml", root / f"{name}-ours", shard_bytes=10**9, seed=SEED, progress=silent)
        pairs.append((root / f"{name}.yml", root / f"{name}-theirs"))
    errors = run_peer(pairs, root, "run_moe_peer.py")
    assert not any(errors.values()), errors
    found = {
        name: [_tensors(root / f"{name}-{side}") for side in ("ours", "theirs")] for name in cases if name != "deepseek"
    }
    found["deepseek"] = [
        _as_deepseek(root / "deepseek-ours"),
        load_file(root / "deepseek-theirs" / "model.safetensors"),
    ]
    return {name: (ours, theirs) for name, (ours, theirs) in found.items()}


def shared_cases(root: Path) -> dict[str, dict[str, Any]]:
    """One gated shared expert for Qwen2 and Llama, one that nothing weighs, and a scaled expert."""
    qwen2, llama = ([{"source_model": str(root / f"{kind}-base")}] for kind in ("qwen2", "llama"))
    cases = {
        "qwen2-shared": config(root, "qwen2", "hidden", shared_experts=[qwen2[0] | SHARED[0]]),
        "llama-shared": config(root, "llama", "cheap_embed", shared_experts=[llama[0] | SHARED[0]]),
        "llama-qwen": config(root, "llama", "random", shared_experts=llama, architecture="qwen"),
        "deepseek": config(root, "llama", "random", shared_experts=llama),
        "scaled": config(root, "qwen3", "random"),
    }
    cases["scaled"]["experts"][0]["residual_scale"] = 0.25
    return cases


def _as_deepseek(folder: Path) -> dict[str, Tensor]:
    """Our tensors under the names of DeepSeek MoE, whose class travels as remote code and cannot be run here."""
    named = {}
    for name, value in load_file(folder / "model.safetensors").items():
        place = (
            name.removeprefix("trunk.").replace(".shared_experts.0.", ".shared_experts.").replace(".ffn_router.", ".")
        )
        if not place.endswith(".centre"):
            named[place.replace(".gate.gate.", ".gate.")] = value
    return named


def _tensors(folder: Path) -> dict[str, Tensor]:
    """As transformers holds them: the peer stores experts fused, we store them in Mixtral's own form."""
    state: dict[str, Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return state


def gates(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name.endswith(".gate.weight")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_the_same_tensors(both: Any, kind: str, mode: str) -> None:
    ours, theirs = both[f"{kind}-{mode}"]
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - gates(ours):
        assert torch.equal(ours[name], theirs[name]), name
    assert len(gates(ours)) == 2
    for name, value in gates(ours).items():
        if mode == "hidden":
            assert cosine_similarity(value, theirs[name]).min() > HALF_PRECISION
        else:
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", [*QWENS, "deepseek", "scaled"])
def test_the_same_shared_and_scaled_experts(both: Any, case: str) -> None:
    ours, theirs = both[case]
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if name.endswith("gate.weight") and case == "qwen2-shared":
            assert cosine_similarity(value, theirs[name]).min() > HALF_PRECISION
        else:
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6, msg=name)


def test_its_mean_counts_padding_and_ours_does_not(both: Any) -> None:
    ours, theirs = both["padded"]
    # The first expert's prompts have five and four tokens: one is padded. The second's differ by three.
    for name, value in gates(ours).items():
        assert cosine_similarity(value, theirs[name])[1] < HALF_PRECISION
