"""LoRA adapters as PEFT stores them, written without PEFT."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def write_adapter(
    folder: Path,
    model: Path,
    *,
    base: str | None = None,
    seed: int = 0,
    modules: Sequence[str] = ("q_proj", "down_proj"),
) -> Path:
    """A random adapter of rank 2 on these modules of a model folder; `base` is what it says it was trained on."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.endswith(tuple(modules)):
            rows, columns = weight.shape
            place = f"base_model.model.{module}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(2, columns, generator=generator) * 0.05
            tensors[f"{place}.lora_B.weight"] = torch.randn(rows, 2, generator=generator) * 0.05
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
    settings |= {"base_model_name_or_path": str(model) if base is None else base, "target_modules": list(modules)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
