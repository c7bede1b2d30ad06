"""A LoRA adapter put on its base model while reading, in PEFT's own arithmetic. Knows no method, and needs no PEFT.

Source: LoRA (arXiv 2106.09685): W' = W + s B A, s = alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732).
As in PEFT's `merge_and_unload` the product is taken in fp32 and the sum is rounded to the dtype of W.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from glue.checkpoints.reader import Checkpoint
from glue.references.adapters import AdapterTensors, adapter_settings, adapter_tensors
from glue.references.folders import read_config
from glue.references.headers import TensorInfo, folder_tensors
from glue.specs.errors import IncompatibleModelsError


@dataclass(frozen=True)
class LowRank:
    """The change of one weight, of shape `rows x columns`: `scale` times left @ right, both fp32."""

    left: Tensor
    right: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight that it changes."""
        return self.left.shape[0], self.right.shape[1]

    def flat(self, start: int, stop: int) -> Tensor:
        """The elements from `start` to before `stop` of the flattened change, in fp32."""
        columns = self.right.shape[1]
        first, last = start // columns, -(-stop // columns)
        change = (self.left[first:last] @ self.right) * self.scale
        return change.flatten()[start - first * columns : stop - first * columns]


class AdaptedCheckpoint(Checkpoint):
    """A model folder read as if the adapter had been merged into it."""

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        tensors: dict[str, TensorInfo],
        changes: Mapping[str, LowRank] | None = None,
    ) -> None:
        super().__init__(folder, config, tensors)
        self._changes = changes or {}

    @classmethod
    def open_adapted(cls, folder: Path, adapter: Path) -> Self:
        """Open a model folder with an adapter's folder on top of it.

        Raises:
            IncompatibleModelsError: either is incomplete, or the adapter does not fit the model.
            InvalidInputError: the adapter is of a kind that is not supported.
        """
        settings, tensors = adapter_settings(adapter), folder_tensors(folder)
        found = adapter_tensors(adapter, tensors)
        with Checkpoint(adapter, {}, {name: info for name, (_, info) in found.sides.items()}) as source:
            changes = _changes(source, found, tensors, settings)
        infos = {name: TensorInfo(name, i.dtype, i.shape, i.file, i.start, i.end) for name, i in found.replaced.items()}
        return cls(folder, read_config(folder), tensors | infos, changes)

    def read_flat(self, name: str, start: int, stop: int) -> Tensor:
        """The elements from `start` to before `stop` of the flattened, changed tensor, in its own dtype."""
        stored = super().read_flat(name, start, stop)
        change = self._changes.get(name)
        if change is None:
            return stored
        return (stored.to(torch.float32) + change.flat(start, stop)).to(stored.dtype)


def open_checkpoint(folders: Sequence[Path]) -> Checkpoint:
    """The checkpoint in a folder, or the one with an adapter's folder on top of it.

    Raises:
        IncompatibleModelsError: it is incomplete, or the adapter does not fit the model.
        InvalidInputError: the adapter is of a kind that is not supported.
    """
    return Checkpoint.open(*folders) if len(folders) == 1 else AdaptedCheckpoint.open_adapted(*folders)


def _changes(
    source: Checkpoint, found: AdapterTensors, tensors: Mapping[str, TensorInfo], settings: Mapping[str, Any]
) -> dict[str, LowRank]:
    pairs: dict[str, dict[str, Tensor]] = {}
    embeddings = {side.module for side, _ in found.sides.values() if side.on_embedding}
    for name, (side, _) in found.sides.items():
        pairs.setdefault(side.module, {})[side.side] = source.read(name, torch.float32)
    return {
        f"{module}.weight": _low_rank(module, pair, module in embeddings, tensors, settings)
        for module, pair in pairs.items()
    }


def _low_rank(
    module: str,
    pair: Mapping[str, Tensor],
    embedding: bool,
    tensors: Mapping[str, TensorInfo],
    settings: Mapping[str, Any],
) -> LowRank:
    info = tensors.get(f"{module}.weight")
    if info is None or pair.keys() != {"A", "B"}:
        raise IncompatibleModelsError(
            f"the adapter changes {module}, which the model does not have, or only half of it"
        )
    rank = pair["A"].shape[0]
    alpha = _alpha(module, settings)
    scale = alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
    turned = embedding or bool(settings.get("fan_in_fan_out"))
    left, right = (pair["A"].T, pair["B"].T) if turned else (pair["B"], pair["A"])
    change = LowRank(left.contiguous(), right.contiguous(), scale)
    if change.shape != info.shape:
        raise IncompatibleModelsError(f"the adapter's change of {module} has shape {change.shape}, not {info.shape}")
    return change


def _alpha(module: str, settings: Mapping[str, Any]) -> float:
    patterns = settings.get("alpha_pattern") or {}
    found = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
    return float(patterns[found] if found is not None else settings["lora_alpha"])
