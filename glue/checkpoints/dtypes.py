"""Safetensors' names of dtypes and torch's. Knows nothing of files."""

from collections.abc import Mapping
from typing import Any

import torch

_TORCH = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "I64": torch.int64,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in _TORCH.items()}
_CONFIG = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors name such as `BF16`.

    Raises:
        ValueError: torch has no such dtype.
    """
    if name not in _TORCH:
        raise ValueError(f"tensors of dtype {name} cannot be read")
    return _TORCH[name]


def safetensors_name(dtype: torch.dtype) -> str:
    """The safetensors name of a torch dtype.

    Raises:
        ValueError: safetensors has no such dtype.
    """
    if dtype not in _NAMES:
        raise ValueError(f"tensors of dtype {dtype} cannot be stored")
    return _NAMES[dtype]


def dtype_name(config: Mapping[str, Any]) -> str:
    """The dtype that a model's config names, in the words of old and new configs; `float32` if it names none."""
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def config_dtype(name: str) -> torch.dtype:
    """The torch dtype of a config's name such as `bfloat16`.

    Raises:
        ValueError: models are not stored in that dtype.
    """
    if name not in _CONFIG:
        raise ValueError(f"models are not stored as {name}; choose one of {', '.join(_CONFIG)}")
    return _CONFIG[name]
