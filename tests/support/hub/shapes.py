"""Models of any size as headers over holes: what a preflight reads of them is there, the weights cost no disk."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHARD_BYTES = 5_000_000_000

LLAMA_7B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float16",
}  # fmt: skip


def shaped_model(folder: Path, *, tokenizer: str = "llama", **config: Any) -> Path:
    """A Llama of these sizes in fp16 shards, with a tokenizer as large as Llama-2's."""
    folder.mkdir(parents=True)
    settings = LLAMA_7B | config
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "add_bos_token": True}))
    words = {f"{tokenizer} {number:05d} {'x' * 30}": number for number in range(32000)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": words}}))
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in llama_shapes(settings):
        bytes_ = 2 * _count(shape)
        if size + bytes_ > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += bytes_
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_with_holes(folder / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def llama_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama's tensors."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kept = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        place = f"model.layers.{layer}."
        for name, rows in (("q", hidden), ("k", kept), ("v", kept), ("o", hidden)):
            yield f"{place}self_attn.{name}_proj.weight", (rows, hidden)
        for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            yield f"{place}mlp.{name}_proj.weight", shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{place}{name}.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (config["vocab_size"], hidden)


def write_with_holes(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of fp16 zeros, none of which take room."""
    header, position = {}, 0
    for name, shape in tensors.items():
        end = position + 2 * _count(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    content = json.dumps(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content)
    os.truncate(path, 8 + len(content) + position)


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for extent in shape:
        product *= extent
    return product
