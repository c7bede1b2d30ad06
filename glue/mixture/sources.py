"""Models on their way into a mixture: where their tensors are read, and what changes of them. Knows no level."""

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from glue.checkpoints.reader import Checkpoint
from glue.references.reading import refusal

_BLOCK_ELEMENTS = 1 << 20

# The last linear layer of an MLP, by the names that transformers' architectures give it.
_LAST = re.compile(r"(?:.*\.)?(down_proj|dense_4h_to_h|c_proj|fc2|fc_out|w2|output_linear)\.(weight|bias)")


@dataclass(frozen=True)
class Streamed:
    """A tensor that is read block by block: `read` gives the flattened elements from a start to before a stop."""

    shape: tuple[int, ...]
    read: Callable[[int, int], Tensor]

    @classmethod
    def of(cls, value: Tensor) -> Self:
        """A tensor in memory."""
        flat = value.reshape(-1)
        return cls(tuple(value.shape), lambda start, stop: flat[start:stop])

    @classmethod
    def stored(cls, checkpoint: Checkpoint, name: str) -> Self:
        """A checkpoint's tensor, in its own dtype."""
        return cls(checkpoint.info(name).shape, partial(checkpoint.read_flat, name))

    def blocks(self) -> list[tuple[int, int]]:
        """Where each block begins and ends."""
        total = math.prod(self.shape)
        return [(start, min(start + _BLOCK_ELEMENTS, total)) for start in range(0, total, _BLOCK_ELEMENTS)]


@dataclass(frozen=True)
class Adjustment:
    """Normal noise of deviation `noise_scale` on an expert's MLP, and a factor for what its last layer gives.

    After mergekit-moe's `noise_scale` and `residual_scale`; which noise, `seed` and the tensor's name decide.
    """

    noise_scale: float = 0.0
    residual_scale: float = 1.0
    seed: str = ""

    @property
    def is_none(self) -> bool:
        """Whether everything stays as it is."""
        return self.noise_scale == 0.0 and self.residual_scale == 1.0

    def of(self, name: str, value: Tensor) -> Tensor:
        """The tensor of that name with noise, then scaled if it is the last layer's; in float32 if anything changes."""
        if self.is_none:
            return value
        changed = value.float()
        if self.noise_scale:
            digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
            changed = changed + torch.randn(changed.shape, generator=generator) * self.noise_scale
        return changed * self.residual_scale if _LAST.fullmatch(name) else changed

    def check_names(self, names: list[str], model: str) -> None:
        """Check that there is a last layer to scale.

        Raises:
            IncompatibleModelsError: none of the names is one.
        """
        if self.residual_scale != 1.0 and not any(map(_LAST.fullmatch, names)):
            detail = f"which layer of {model}'s MLP is the last is not known"
            raise refusal("residual_scale", detail, "leave out residual_scale, or scale the model with glue merge")


UNCHANGED = Adjustment()


@dataclass(frozen=True)
class ExpertSource:
    """A whole causal language model that becomes an expert; `name` is what people call it.

    `folder` holds its config and tokenizer; `checkpoint`, if given, its tensors, and stays open as long as the
    caller keeps it so. `adjustment` is for its MLPs at level `ffn`.
    """

    name: str
    folder: Path
    checkpoint: Checkpoint | None = None
    adjustment: Adjustment = UNCHANGED

    @contextmanager
    def opened(self) -> Iterator[Checkpoint]:
        """Its tensors, for reading.

        Raises:
            IncompatibleModelsError: the folder is not a safetensors model.
        """
        if self.checkpoint is not None:
            yield self.checkpoint
            return
        with Checkpoint.open(self.folder) as checkpoint:
            yield checkpoint


def opened_model(source: ExpertSource | Path) -> AbstractContextManager[Checkpoint]:
    """The tensors of a source, or of a folder.

    Raises:
        IncompatibleModelsError: the folder is not a safetensors model.
    """
    return source.opened() if isinstance(source, ExpertSource) else Checkpoint.open(source)


@dataclass(frozen=True)
class SharedExperts:
    """Models whose MLPs answer every token beside those that are chosen.

    `gates` is layers x shared experts x hidden; without it nothing weighs them.
    """

    sources: tuple[ExpertSource, ...] = ()
    gates: Tensor | None = None


NO_SHARED = SharedExperts()
