"""Safetensors headers: which tensors a folder holds and where their bytes lie. Never reads a tensor, never torch.

Format: the first eight bytes are the header's length, little-endian; the header is a JSON object from tensor
name to dtype, shape and byte range; the tensors follow without holes.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glue.references.reading import open_file, parse_json, read_json, refusal, unreadable

MAX_HEADER_BYTES = 100_000_000
MAX_INDEX_BYTES = 100_000_000
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip

_COPY_AGAIN = "the file is damaged or was not copied whole; copy or save the model again"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor in a file: its bytes are `file[start:end]`, counted from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The tensors of one file in order of their bytes, and the free text that its writer added."""

    file: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The checked header of one safetensors file: at most 100 MB, every byte of the rest used exactly once.

    Raises:
        IncompatibleModelsError: the file is missing, damaged, cut off or not safetensors.
    """
    raw, size = _raw_header(path)
    entries = parse_json(raw, f"the header of {path.name}")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refusal("corrupt", f"the metadata of {path.name} is not text", _COPY_AGAIN)
    first = 8 + len(raw)
    tensors = sorted((_tensor(path, first, name, entry) for name, entry in entries.items()), key=_by_bytes)
    _check_coverage(path, tensors, first, size)
    return Header(path, {tensor.name: tensor for tensor in tensors}, metadata)


def folder_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of a model folder by name: of `model.safetensors`, or of all shards of its index.

    Raises:
        IncompatibleModelsError: there are no safetensors, a shard is missing or damaged, or the index
            and the shards disagree.
    """
    if (folder / SINGLE_FILE).exists():
        return dict(read_header(folder / SINGLE_FILE).tensors)
    if not (folder / INDEX_FILE).exists():
        raise _no_safetensors(folder)
    weight_map = _weight_map(folder)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        detail = f"{len(missing)} of {len(shards)} shards are missing, the first is {missing[0]}"
        raise refusal("missing_shards", detail, "copy all files that the index names")
    found = [tensor for shard in shards for tensor in read_header(folder / shard).tensors.values()]
    _check_index(weight_map, found)
    return {tensor.name: tensor for tensor in found}


def raw_header(path: Path) -> bytes:
    """The bytes of a file's header as they are, unparsed; for digests.

    Raises:
        IncompatibleModelsError: as `read_header`.
    """
    return _raw_header(path)[0]


def _raw_header(path: Path) -> tuple[bytes, int]:
    with open_file(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise refusal("corrupt", f"{path.name} is not a complete safetensors file", _COPY_AGAIN)
            return file.read(length), size
        except OSError as error:
            raise unreadable(path, error) from None


def _tensor(path: Path, first: int, name: str, entry: Any) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, start, end)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError
        right = end - start == math.prod(shape) * DTYPE_BYTES[dtype]
    except (KeyError, TypeError, ValueError):
        raise refusal("corrupt", f"{path.name} describes tensor {name[:200]!r} wrongly", _COPY_AGAIN) from None
    if not right:
        detail = f"in {path.name} the bytes of tensor {name[:200]!r} do not fit its shape and dtype"
        raise refusal("corrupt", detail, _COPY_AGAIN)
    return TensorInfo(name, dtype, shape, path, first + start, first + end)


def _by_bytes(tensor: TensorInfo) -> tuple[int, int]:
    return tensor.start, tensor.end


def _check_coverage(path: Path, tensors: list[TensorInfo], first: int, size: int) -> None:
    position = first
    for tensor in tensors:
        if tensor.start != position:
            detail = f"in {path.name} the bytes of tensor {tensor.name[:200]!r} overlap others or leave a hole"
            raise refusal("corrupt", detail, _COPY_AGAIN)
        position = tensor.end
    if position != size:
        detail = f"{path.name} has {size} bytes, but its header speaks of {position}"
        raise refusal("corrupt", detail, _COPY_AGAIN)


def _weight_map(folder: Path) -> dict[str, str]:
    weight_map = read_json(folder / INDEX_FILE, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise refusal("corrupt", f"{INDEX_FILE} has no weight_map", _COPY_AGAIN)
    strange = [shard for shard in weight_map.values() if not _is_shard_name(shard)]
    if strange:
        detail = f"{INDEX_FILE} names a file that is not a safetensors file of this folder: {str(strange[0])[:200]!r}"
        raise refusal("corrupt", detail, "shards must lie beside the index")
    return weight_map


def _is_shard_name(shard: Any) -> bool:
    return (
        isinstance(shard, str)
        and shard.endswith(".safetensors")
        and not any(character in shard for character in "/\\\0")
    )


def _check_index(weight_map: Mapping[str, str], found: list[TensorInfo]) -> None:
    expected = set(weight_map.items())
    actual = {(tensor.name, tensor.file.name) for tensor in found}
    if expected != actual:
        name, shard = min(expected ^ actual)
        where = "does not lie in" if (name, shard) in expected else "lies, unknown to the index, in"
        raise refusal("corrupt", f"the index and the shards disagree: {name[:200]!r} {where} {shard}", _COPY_AGAIN)


def _no_safetensors(folder: Path) -> Exception:
    other = sorted(
        path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5"}
    )
    if not other:
        return refusal("no_weights", f"there is no {SINGLE_FILE} and no {INDEX_FILE}", "save the model's weights there")
    detail = f"the weights are not safetensors but {other[0]}"
    if other[0].endswith(".gguf"):
        return refusal("not_safetensors", detail, "use the original model: quantised files cannot be merged")
    fix = "pickles can run code, so load the model where you trust it and save_pretrained() it as safetensors"
    return refusal("not_safetensors", detail, fix)
