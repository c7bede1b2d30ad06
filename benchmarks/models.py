"""Checkpoints of 1.1 billion parameters with random weights, for benchmarks: a base and models near it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from glue.checkpoints.architecture import architecture_of
from tests.support.models import tiny_tokenizer

DEVIATION = 0.02
MOVE = 0.002


def config() -> LlamaConfig:
    """The shape of TinyLlama 1.1B."""
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def make_models(root: Path, count: int) -> None:
    """Write `base` and `model1`, `model2`, ... in bf16, each 2.2 GB, unless they are there."""
    for number in range(count + 1):
        folder = root / (f"model{number}" if number else "base")
        if not (folder / "config.json").is_file():
            _make(folder, number)


def _make(folder: Path, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shapes = architecture_of(json.loads(config().to_json_string())).shapes
    tensors = {}
    for place, (name, shape) in enumerate(shapes.items()):
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(place)) * DEVIATION
        if number:
            own = torch.Generator().manual_seed(1000 * number + place)
            tensor += torch.randn(shape, generator=own) * MOVE
        tensors[name] = tensor.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tiny_tokenizer(folder)
    config().save_pretrained(folder)
