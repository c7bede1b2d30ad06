"""Model folders without torch: safetensors files of zeros with any names and shapes, configs, a tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glue.references.headers import DTYPE_BYTES

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 16,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}
LLAMA_TENSORS: Tensors = {
    "model.embed_tokens.weight": ("F32", (16, 8)),
    "model.layers.0.self_attn.q_proj.weight": ("F32", (8, 8)),
    "model.layers.0.mlp.up_proj.weight": ("F32", (16, 8)),
    "model.norm.weight": ("F32", (8,)),
    "lm_head.weight": ("F32", (16, 8)),
}
TOKENIZER = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}}, "added_tokens": []}


def header_of(tensors: Tensors) -> dict[str, Any]:
    """The header of a safetensors file that holds these tensors in this order; name to (dtype, shape)."""
    header, position = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = DTYPE_BYTES[dtype]
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    return header


def write_safetensors(path: Path, tensors: Tensors, byte: bytes = b"\0") -> None:
    """A safetensors file whose tensors consist of that byte."""
    header = header_of(tensors)
    raw = json.dumps(header).encode()
    size = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + byte * size)


def write_model(
    folder: Path,
    config: Mapping[str, Any] = LLAMA,
    tensors: Tensors = LLAMA_TENSORS,
    tokenizer: Mapping[str, Any] | None = TOKENIZER,
) -> Path:
    """A folder that looks like a saved causal language model; gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder
