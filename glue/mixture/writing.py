"""Writing a mixture's folder: weights, then what stands beside them, then verification. Knows no level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from torch import Tensor

from glue.checkpoints.shards import PlannedTensor
from glue.checkpoints.verify import verify_checkpoint
from glue.checkpoints.writer import Progress, write_checkpoint
from glue.mixture.sources import ExpertSource

__all__ = ["ExpertSource", "Output", "write_mixture"]

# Of the progress that a build reports, the part before verification.
_WRITING = 0.7


@dataclass(frozen=True)
class Output:
    """Where and how a mixture is written. Shards that are already in `folder` complete are kept."""

    folder: Path
    shard_bytes: int
    token: int
    progress: Progress

    def part(self, start: float, end: float) -> Self:
        """The same output, for work that is only this part of the whole."""
        return replace(self, progress=lambda done, text: self.progress(start + (end - start) * done, text))


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
        progress=output.part(0.0, _WRITING).progress,
    )
    write_companions()
    verify_checkpoint(output.folder, planned, output.part(_WRITING, 1.0).progress)
