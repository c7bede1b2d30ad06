"""Writing a mixture's folder: weights, then what stands beside them, then verification. Knows no level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from glue.checkpoints.shards import PlannedTensor
from glue.checkpoints.verify import verify_checkpoint
from glue.checkpoints.writer import Progress, write_checkpoint

# Of the progress that a build reports, the part before verification.
_WRITING = 0.7


@dataclass(frozen=True)
class ExpertSource:
    """A whole causal language model that becomes an expert; `name` is what people call it."""

    name: str
    folder: Path


@dataclass(frozen=True)
class Output:
    """Where and how a mixture is written. Shards that are already in `folder` complete are kept."""

    folder: Path
    shard_bytes: int
    token: int
    progress: Progress


def write_mixture(
    output: Output,
    planned: Sequence[PlannedTensor],
    produce: Callable[[str], Tensor],
    write_companions: Callable[[], None],
) -> None:
    """Stream the planned tensors, write the companions, then read everything once more and verify it.

    Raises:
        DiskFullError: there is no space; nothing that looks finished is left.
        IncompatibleModelsError: what was written is not a complete, finite model.
    """
    write_checkpoint(
        output.folder,
        planned,
        produce,
        shard_bytes=output.shard_bytes,
        token=output.token,
        progress=lambda done, text: output.progress(_WRITING * done, text),
    )
    write_companions()
    rest = 1 - _WRITING
    verify_checkpoint(output.folder, planned, lambda done, text: output.progress(_WRITING + rest * done, text))
