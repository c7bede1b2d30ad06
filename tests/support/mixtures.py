"""A small mixture of three architectures, built by our builder; its experts alone, to compare with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from glue.mixture.build import ExpertSource, build_mixture
from glue.mixture.router import RouterWeights
from tests.support.models import VOCABULARY, tiny_llama, tiny_neox, tiny_qwen3, tiny_tokenizer

WIDTH = 16


def silent(fraction: float, text: str) -> None:
    """A progress callback that keeps quiet."""


def random_router(experts: int, seed: int = 0, width: int = WIDTH) -> RouterWeights:
    """A router that sends random prompts to all experts about equally often."""
    generator = torch.Generator().manual_seed(seed)
    return RouterWeights(torch.randn(experts, width, generator=generator), torch.zeros(width))


def mix(
    out: Path,
    folders: Sequence[Path],
    router: RouterWeights | None = None,
    *,
    top_k: int = 1,
    dtype: str = "float32",
    shard_bytes: int = 1_000_000,
) -> Path:
    """Build a mixture of these folders; embedding and tokenizer are those of the first."""
    build_mixture(
        out,
        [ExpertSource(folder.name, folder) for folder in folders],
        router or random_router(len(folders)),
        folders[0],
        folders[0],
        top_k=top_k,
        dtype=dtype,
        shard_bytes=shard_bytes,
        token=1,
        progress=silent,
    )
    return out


def three_experts(root: Path) -> list[Path]:
    """A Llama and a Qwen3 with tied embeddings and a GPT-NeoX without, of one tokenizer."""
    return [
        tiny_llama(root / "llama", seed=1),
        tiny_neox(root / "neox", seed=2),
        tiny_qwen3(root / "qwen3", seed=3, num_hidden_layers=3),
    ]


@dataclass(frozen=True)
class MixtureFolders:
    """A built mixture and the folders of its experts, in order."""

    folder: Path
    experts: list[Path]

    def experts_alone(self) -> list[PreTrainedModel]:
        """Every expert loaded by itself, as its own folder says."""
        return [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in self.experts]


def prompts(count: int, length: int, seed: int = 0) -> Tensor:
    """Random prompts without padding: count x length."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, len(VOCABULARY), (count, length), generator=generator)


def padded(samples: Sequence[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths as a batch, with its mask."""
    length = max(len(sample) for sample in samples)
    ids = torch.zeros(len(samples), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        place = slice(length - len(sample), length) if side == "left" else slice(0, len(sample))
        ids[row, place] = sample
        mask[row, place] = 1
    return ids, mask


def tiny_mistral(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A Mistral of two layers and width 16 with a window of eight tokens and a head of its own."""
    return _tiny(folder, seed, MistralForCausalLM, MistralConfig, {"sliding_window": 8} | config)


def tiny_qwen2(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A Qwen2 of two layers and width 16, with its biases, which are not zero."""
    return _tiny(folder, seed, Qwen2ForCausalLM, Qwen2Config, config)


def _tiny(folder: Path, seed: int, kind: Any, settings: Any, config: dict[str, Any]) -> Path:
    shape: dict[str, Any] = {
        "vocab_size": len(VOCABULARY), "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
        "eos_token_id": 1, "bos_token_id": None, "initializer_range": 0.3,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(settings(**shape | config))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    tiny_tokenizer(folder)
    return folder
