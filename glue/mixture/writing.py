"""Writing a mixture's folder: weights, then what stands beside them, then verification. Knows no level."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

from torch import Tensor

from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.shards import PlannedTensor, ShardFile, ShardPlan, plan_shards
from glue.checkpoints.verify import check_finite, verify_layout, verify_tokenizer
from glue.checkpoints.writer import Progress, write_shards
from glue.merging.parallel import run_all
from glue.mixture.sources import ExpertSource, Streamed

__all__ = ["ExpertSource", "Output", "write_mixture"]


@dataclass(frozen=True)
class Output:
    """Where and how a mixture is written. Shards that are already in `folder` complete are kept.

    `digests` gathers the sha256 of files that were written now, by name.
    """

    folder: Path
    shard_bytes: int
    token: int
    progress: Progress
    digests: dict[str, str] = field(default_factory=dict)

    def part(self, start: float, end: float) -> Self:
        """The same output, for work that is only this part of the whole."""
        return replace(self, progress=lambda done, text: self.progress(start + (end - start) * done, text))


def write_mixture(
    output: Output,
    planned: Sequence[PlannedTensor],
    produce: Callable[[str], Tensor | Streamed],
    write_companions: Callable[[], None],
) -> dict[str, str]:
    """Stream the planned tensors, write the companions, then check the layout of what was written.

    Every value is looked at on its way. The sha256 of every shard that was written now, by name, is given back.

    Raises:
        DiskFullError: there is no space; nothing that looks finished is left.
        IncompatibleModelsError: what was written is not a complete, finite model.
        ValueError: a produced tensor has not the planned shape.
    """
    total = sum(tensor.bytes for tensor in planned) or 1
    done = 0

    def tell(tensor: PlannedTensor) -> None:
        nonlocal done
        done += tensor.bytes
        output.progress(done / total, tensor.name)

    def fill(shard: ShardFile) -> None:
        targets = shard.plan.tensors
        with closing(run_all([partial(_pieces, shard, target, produce) for target in targets])) as ends:
            for number in ends:
                tell(targets[number])

    def kept(shard: ShardPlan) -> None:
        for tensor in shard.tensors:
            tell(tensor)

    digests = write_shards(output.folder, plan_shards(planned, output.shard_bytes), fill, kept, output.token)
    write_companions()
    with Checkpoint.open(output.folder) as written:
        verify_layout(written, planned)
        verify_tokenizer(output.folder, written.config)
    return digests


def _pieces(
    shard: ShardFile, planned: PlannedTensor, produce: Callable[[str], Tensor | Streamed]
) -> list[Callable[[], None]]:
    """What writes a tensor, block by block."""
    value = produce(planned.name)
    if tuple(value.shape) != planned.shape:
        raise ValueError(f"{planned.name} has shape {tuple(value.shape)}, planned was {planned.shape}")
    source = value if isinstance(value, Streamed) else Streamed.of(value)

    def piece(start: int, stop: int) -> None:
        stored = source.read(start, stop).to(planned.dtype)
        check_finite(stored, planned.name)
        shard.write(planned.name, start, stored)

    return [partial(piece, start, stop) for start, stop in source.blocks()]
