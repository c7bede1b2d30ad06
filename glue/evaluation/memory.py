"""How much memory a row of a batch takes, and how much there is. Estimates; whoever runs out halves the batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

# On CPUs a constant, so that batches, and with them scores, are the same on every machine.
CPU_BYTES = 4 * 1024**3
# Of what a device has free, the rest is for what no estimate knows.
DEVICE_SHARE = 0.8
# Tensors of the hidden size that a layer holds at once: the residual stream, norms, queries, keys, values, their sums.
_HIDDEN_TENSORS = 8
_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Room:
    """Bytes for one batch; `is_fixed` says whether they are the same on every machine."""

    budget: Callable[[], int]
    is_fixed: bool


def room_of(device: torch.device) -> Room:
    """A constant on CPUs; on a CUDA device most of what is free there, or held for reuse by torch."""
    if device.type != "cuda":
        return Room(lambda: CPU_BYTES, is_fixed=True)

    def free() -> int:
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(DEVICE_SHARE * (torch.cuda.mem_get_info(device)[0] + held))

    return Room(free, is_fixed=False)


def row_bytes(model: PreTrainedModel, width: int, kept: int, before: int = 0) -> int:
    """Bytes that one row of a forward pass takes beside the weights.

    `width` tokens are run with `before` tokens in the cache, and the logits of `kept` positions are turned into
    log-probabilities in float32. A layer's activations are counted once: nothing is kept for a backward pass. For
    a mixture the largest expert's shape counts.
    """
    return max(_shape_bytes(config, model.dtype.itemsize, width, kept, before) for config in _configs(model))


def _configs(model: PreTrainedModel) -> list[Any]:
    whole = model.config.get_text_config()
    if getattr(whole, "vocab_size", None) and getattr(whole, "num_attention_heads", None):
        return [whole]
    parts = [module.config.get_text_config() for module in model.modules() if isinstance(module, PreTrainedModel)]
    return [part for part in parts if getattr(part, "num_attention_heads", None)] or [whole]


def _shape_bytes(config: Any, item: int, width: int, kept: int, before: int) -> int:
    hidden = getattr(config, "hidden_size", 0)
    heads = getattr(config, "num_attention_heads", 0) or 1
    head_width = getattr(config, "head_dim", None) or hidden // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    activations = width * (_HIDDEN_TENSORS * hidden + 2 * inner) * item
    cache = 2 * getattr(config, "num_hidden_layers", 0) * key_heads * head_width * (before + width) * item
    # Attention with a mask of its own may hold all scores at once, in float32 for the softmax.
    scores = heads * width * (before + width) * _FLOAT32_BYTES
    logits = kept * getattr(config, "vocab_size", 0) * (item + 2 * _FLOAT32_BYTES)
    return activations + cache + scores + logits
