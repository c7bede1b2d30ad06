"""The layout of a checkpoint in safetensors shards, and one shard being written. Knows no method.

A shard's bytes depend only on the planned tensors and their values: neither the order in which blocks are
written nor who writes them shows.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glue.checkpoints.disk import flush_folder, full_disk_is_told, temporary
from glue.checkpoints.dtypes import safetensors_name
from glue.checkpoints.streamed import StreamedFile
from glue.references.headers import INDEX_FILE, SINGLE_FILE

HEADER_ALIGNMENT = 8


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that a checkpoint will hold."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its size when stored."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class ShardPlan:
    """One file of a checkpoint: its name, the bytes of its header and its tensors in the order of their bytes."""

    file: str
    header: bytes
    tensors: tuple[PlannedTensor, ...]

    @property
    def bytes(self) -> int:
        """The size of the whole file."""
        return len(self.header) + sum(tensor.bytes for tensor in self.tensors)

    def is_complete(self, folder: Path) -> bool:
        """Whether the folder holds this shard, judged by size and header.

        A shard gets its final name only when its bytes are on the disk, so nothing else has to be compared.
        """
        path = folder / self.file
        if not path.is_file() or path.stat().st_size != self.bytes:
            return False
        with path.open("rb") as file:
            return file.read(len(self.header)) == self.header


def plan_shards(tensors: Sequence[PlannedTensor], shard_bytes: int) -> tuple[ShardPlan, ...]:
    """Tensors into files of at most `shard_bytes` each (a larger tensor gets a file of its own), in the given order."""
    groups: list[list[PlannedTensor]] = []
    size = 0
    for tensor in tensors:
        if not groups or size + tensor.bytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.bytes
    return tuple(_shard(_file_name(number, len(groups)), group) for number, group in enumerate(groups, start=1))


def index_json(shards: Sequence[ShardPlan]) -> bytes:
    """The index of several shards, as transformers writes it."""
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    metadata = {
        "total_parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "total_size": sum(tensor.bytes for tensor in tensors),
    }
    weight_map = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    return (json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n").encode()


class ShardFile:
    """A shard being written under its temporary name; blocks come from any thread, more or less in order.

    Raises:
        DiskFullError: at once, when the space for the whole shard cannot be had.
    """

    def __init__(self, folder: Path, plan: ShardPlan, token: int) -> None:
        self.plan = plan
        self._path = folder / plan.file
        self._partial = temporary(self._path, token)
        self._starts = _starts(plan)
        with full_disk_is_told(self._path):
            try:
                self._file = StreamedFile(self._partial, plan.bytes)
            except OSError:
                self._partial.unlink(missing_ok=True)
                raise
            self._file.write(0, torch.frombuffer(bytearray(plan.header), dtype=torch.uint8))

    def write(self, name: str, element: int, block: Tensor) -> None:
        """Write `block` from the flattened tensor's `element` on; its dtype must be the planned one.

        Raises:
            DiskFullError: there is no space.
        """
        start, tensor = self._starts[name]
        if block.dtype != tensor.dtype or (element + block.numel()) * block.itemsize > tensor.bytes:
            raise ValueError(f"a block of {name} does not fit what was planned")
        if not block.numel():
            return
        with full_disk_is_told(self._path):
            self._file.write(start + element * block.itemsize, block.contiguous().flatten())

    def finish(self) -> str:
        """Make the bytes durable, then give the shard its name; the sha256 of its bytes.

        Raises:
            DiskFullError: there is no space.
        """
        with full_disk_is_told(self._path):
            digest = self._file.finish()
            self._partial.rename(self._path)
            flush_folder(self._path.parent)
            return digest

    def abandon(self) -> None:
        """Remove the unfinished file."""
        self._file.abandon()
        self._partial.unlink(missing_ok=True)


def _shard(file: str, group: list[PlannedTensor]) -> ShardPlan:
    # Wider elements first, so that every tensor begins at a multiple of its element's size.
    ordered = tuple(sorted(group, key=lambda tensor: -tensor.dtype.itemsize))
    return ShardPlan(file, _header(ordered), ordered)


def _header(tensors: Sequence[PlannedTensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        offsets = [position, position + tensor.bytes]
        entries[tensor.name] = {
            "dtype": safetensors_name(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        position = offsets[1]
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _file_name(number: int, count: int) -> str:
    return SINGLE_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def weights_files(shards: Sequence[ShardPlan]) -> tuple[str, ...]:
    """The names of all files that hold or index these shards."""
    files = tuple(shard.file for shard in shards)
    return files if len(files) == 1 else (*files, INDEX_FILE)


def _starts(plan: ShardPlan) -> dict[str, tuple[int, PlannedTensor]]:
    starts = {}
    position = len(plan.header)
    for tensor in plan.tensors:
        starts[tensor.name] = (position, tensor)
        position += tensor.bytes
    return starts
