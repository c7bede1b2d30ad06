"""mergekit-moe on the same file and seed: the same tensors, gate vectors included, up to its half precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM

from glue.mixture.run import mix_file
from tests.support.mixtures import silent, tiny_mistral
from tests.support.models import tiny_llama, tiny_qwen3
from tests.support.peer import is_installed, run_peer

pytestmark = pytest.mark.skipif(not is_installed(), reason="the peer is not installed; run `make peer`")

SEED = 7
PROMPTS = [("12+3=", "9*9="), ("def f(x):", "return")]
KINDS = {"llama": tiny_llama, "mistral": tiny_mistral, "qwen3": tiny_qwen3}
MODES = ("hidden", "cheap_embed", "random", "uniform_random")
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
    cases["padded"] = config(root, "llama", "hidden_avg")
    pairs = []
    for name, case in cases.items():
        (root / f"{name}.yml").write_text(yaml.safe_dump(case))
        mix_file(root / f"{name}.yml", root / f"{name}-ours", shard_bytes=10**9, seed=SEED, progress=silent)
        pairs.append((root / f"{name}.yml", root / f"{name}-theirs"))
    errors = run_peer(pairs, root, "run_moe_peer.py")
    assert not any(errors.values()), errors
    return {name: tuple(_tensors(root / f"{name}-{side}") for side in ("ours", "theirs")) for name in cases}  # type: ignore[misc]


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


def test_its_mean_counts_padding_and_ours_does_not(both: Any) -> None:
    ours, theirs = both["padded"]
    # The first expert's prompts have five and four tokens: one is padded. The second's differ by three.
    for name, value in gates(ours).items():
        assert cosine_similarity(value, theirs[name])[1] < HALF_PRECISION
