"""Writing a checkpoint shard by shard, so that a killed run goes on at the first missing shard. Knows no method."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from glue.checkpoints.disk import remove_temporaries, write_whole
from glue.checkpoints.shards import PlannedTensor, ShardFile, ShardPlan, index_json, plan_shards, weights_files
from glue.references.headers import INDEX_FILE

Progress = Callable[[float, str], None]
Fill = Callable[[ShardFile], None]


def write_checkpoint(
    folder: Path,
    tensors: Sequence[PlannedTensor],
    produce: Callable[[str], Tensor],
    *,
    shard_bytes: int,
    token: int,
    progress: Progress,
) -> dict[str, str]:
    """Write `tensors` into the folder as safetensors, each produced once, one in memory at a time.

    The sha256 of every file that was written now, by name, is given back.

    Shards that are already there complete are kept. `produce` must give the planned shape; the value is
    converted to the planned dtype. `progress` hears the finished fraction, from 0 to 1.

    Raises:
        DiskFullError: there is no space; nothing that looks finished is left.
        ValueError: a produced tensor has not the planned shape.
    """
    total = sum(tensor.bytes for tensor in tensors) or 1
    done = 0

    def fill(shard: ShardFile) -> None:
        nonlocal done
        for tensor in shard.plan.tensors:
            value = produce(tensor.name)
            if tuple(value.shape) != tensor.shape:
                raise ValueError(f"{tensor.name} has shape {tuple(value.shape)}, planned was {tensor.shape}")
            shard.write(tensor.name, 0, value.to(tensor.dtype))
            done += tensor.bytes
            progress(done / total, tensor.name)

    def kept(shard: ShardPlan) -> None:
        nonlocal done
        done += sum(tensor.bytes for tensor in shard.tensors)
        progress(done / total, shard.file)

    return write_shards(folder, plan_shards(tensors, shard_bytes), fill, kept, token)


def write_shards(
    folder: Path, shards: Sequence[ShardPlan], fill: Fill, kept: Callable[[ShardPlan], None], token: int
) -> dict[str, str]:
    """Write the shards that are missing, each filled by `fill`, then the index; `kept` hears of those that were there.

    The sha256 of every shard that was written now, by name, is given back.

    Raises:
        DiskFullError: there is no space; nothing that looks finished is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    _remove_foreign(folder, shards)
    digests = {}
    for plan in shards:
        if plan.is_complete(folder):
            kept(plan)
            continue
        shard = ShardFile(folder, plan, token)
        try:
            fill(shard)
            digests[plan.file] = shard.finish()
        except BaseException:
            shard.abandon()
            raise
    if len(shards) > 1:
        write_whole(folder / INDEX_FILE, index_json(shards), token)
    return digests


def _remove_foreign(folder: Path, shards: Sequence[ShardPlan]) -> None:
    # An index or a shard of another plan would make the folder ambiguous.
    expected = set(weights_files(shards))
    for path in (*folder.glob("*.safetensors"), folder / INDEX_FILE):
        if path.name not in expected:
            path.unlink(missing_ok=True)
