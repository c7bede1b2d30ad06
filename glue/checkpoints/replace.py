"""Other values for some tensors of a finished checkpoint; every other byte stays. Knows no model."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from glue.checkpoints.dtypes import torch_dtype
from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.shards import PlannedTensor, ShardFile, ShardPlan
from glue.checkpoints.writer import Progress
from glue.references.headers import raw_header

BLOCK_ELEMENTS = 4 * 1024 * 1024


def replace_tensors(folder: Path, values: Mapping[str, Tensor], token: int, progress: Progress) -> None:
    """Write the shards that hold the named tensors anew, with these values in the dtypes that are stored.

    A shard is replaced in one step when its bytes are on the disk; a run that was killed may be started again.
    `progress` hears the finished fraction, from 0 to 1.

    Raises:
        IncompatibleModelsError: the folder has no such tensor.
        ValueError: a value has another shape.
        DiskFullError: there is no space; the folder is as it was.
    """
    with Checkpoint.open(folder) as checkpoint:
        for name, value in values.items():
            if tuple(value.shape) != checkpoint.info(name).shape:
                raise ValueError(f"{name} has shape {checkpoint.info(name).shape}, not {tuple(value.shape)}")
        files = sorted({checkpoint.info(name).file for name in values})
        for done, file in enumerate(files, start=1):
            _write_anew(folder, _plan(file, checkpoint), checkpoint, values, token)
            progress(done / len(files), file.name)


def _plan(file: Path, checkpoint: Checkpoint) -> ShardPlan:
    inside = sorted((info for info in checkpoint.tensors.values() if info.file == file), key=lambda info: info.start)
    text = raw_header(file)
    tensors = tuple(PlannedTensor(info.name, info.shape, torch_dtype(info.dtype)) for info in inside)
    return ShardPlan(file.name, len(text).to_bytes(8, "little") + text, tensors)


def _write_anew(
    folder: Path, plan: ShardPlan, checkpoint: Checkpoint, values: Mapping[str, Tensor], token: int
) -> None:
    shard = ShardFile(folder, plan, token)
    try:
        for tensor in plan.tensors:
            _copy(shard, tensor, checkpoint, values.get(tensor.name))
        shard.finish()
    except BaseException:
        shard.abandon()
        raise


def _copy(shard: ShardFile, tensor: PlannedTensor, checkpoint: Checkpoint, value: Tensor | None) -> None:
    if value is not None:
        shard.write(tensor.name, 0, value.to(tensor.dtype))
        return
    element = 0
    for block in checkpoint.blocks(tensor.name, BLOCK_ELEMENTS):
        shard.write(tensor.name, element, block)
        element += block.numel()
