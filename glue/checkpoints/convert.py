"""Pickled checkpoints into safetensors, one file at a time. Run as a module, in a process that may die.

`weights_only=True` allows tensors and containers alone, and the process has no other task: it opens no network
connection, may not start programs, and has a bound on its memory.
"""

import json
import resource
import sys
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from glue.checkpoints.architecture import architecture_of, stored_tensors
from glue.checkpoints.companions import copy_companions, write_config
from glue.checkpoints.disk import write_whole
from glue.checkpoints.dtypes import safetensors_name
from glue.checkpoints.guarded import DISK_FULL, REFUSED
from glue.checkpoints.manifest import write_manifest
from glue.checkpoints.shards import PlannedTensor
from glue.checkpoints.writer import write_checkpoint
from glue.references.adapters import ADAPTER_WEIGHTS, PICKLED_ADAPTER, is_adapter
from glue.references.folders import ADAPTER_FILE, read_config
from glue.references.headers import TensorInfo
from glue.references.pickles import PICKLE_INDEX, SINGLE_PICKLE
from glue.references.reading import read_json
from glue.specs.errors import DiskFullError, GlueError, InvalidInputError

SHARD_BYTES = 4_000_000_000

_MAX_INDEX_BYTES = 100_000_000
# Beside twice the largest pickle, room for the interpreter and its libraries (address space, not memory in use).
_ROOM_BYTES = 16 * 1024**3
_FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "ctypes.dlopen")


def convert_folder(source: Path, out: Path) -> None:
    """Write the pickled model or adapter in `source` as safetensors into `out`, with config, tokenizer and manifest.

    Raises:
        InvalidInputError: there are no pickles, or one holds something else than tensors.
        IncompatibleModelsError: the tensors are not those of the config's model.
        DiskFullError: there is no space.
    """
    if is_adapter(source):
        _convert_adapter(source, out)
        return
    files = pickle_files(source)
    places = {name: file for file in files for name in _load(source / file)}
    config = read_config(source)
    plan = _planned(source, places, config)
    opened: dict[str, dict[str, Tensor]] = {}

    def produce(name: str) -> Tensor:
        file = places[name]
        if file not in opened:
            opened.clear()
            opened[file] = _load(source / file)
        return opened[file][name].contiguous()

    write_checkpoint(out, plan, produce, shard_bytes=SHARD_BYTES, token=0, progress=lambda fraction, message: None)
    copy_companions(source, out, token=0)
    write_config(out, config, token=0)
    write_manifest(out, token=0)


def _convert_adapter(source: Path, out: Path) -> None:
    # Small enough to be copied; what shares memory safetensors would refuse.
    tensors = {name: value.contiguous().clone() for name, value in _load(source / PICKLED_ADAPTER).items()}
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / ADAPTER_WEIGHTS, save(tensors), token=0)
    write_whole(out / ADAPTER_FILE, (source / ADAPTER_FILE).read_bytes(), token=0)
    copy_companions(source, out, token=0)
    write_manifest(out, token=0)


def pickle_files(folder: Path) -> tuple[str, ...]:
    """The names of the folder's pickles, sorted.

    Raises:
        InvalidInputError: there are none, or the index names files outside the folder.
    """
    for name in (SINGLE_PICKLE, PICKLED_ADAPTER):
        if (folder / name).is_file():
            return (name,)
    if (folder / PICKLE_INDEX).is_file():
        weight_map = read_json(folder / PICKLE_INDEX, _MAX_INDEX_BYTES).get("weight_map", {})
        names = sorted(set(weight_map.values()))
        if not all(Path(name).name == name for name in names):
            raise InvalidInputError(f"{PICKLE_INDEX} names files outside the folder")
        return tuple(names)
    raise InvalidInputError(f"{folder} has neither {SINGLE_PICKLE} nor {PICKLE_INDEX}")


def _load(path: Path) -> dict[str, Tensor]:
    try:
        values: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises what the pickle provokes; all of it is a refusal
        raise InvalidInputError(f"{path.name} is not a file of weights alone: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise InvalidInputError(f"{path.name} holds something else than named tensors")
    return {str(name): value for name, value in values.items()}


def _planned(source: Path, places: dict[str, str], config: dict[str, Any]) -> list[PlannedTensor]:
    found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for file in sorted(set(places.values())):
        for name, value in _load(source / file).items():
            found[name] = (tuple(value.shape), value.dtype)
    infos = {
        name: TensorInfo(name, safetensors_name(dtype), shape, source / places[name], 0, 0)
        for name, (shape, dtype) in found.items()
    }
    if sum(prod(shape) * dtype.itemsize for shape, dtype in found.values()) > 2 * _bytes_of(source, places):
        raise InvalidInputError(f"the tensors of {source.name} are larger than its files")
    kept = stored_tensors(architecture_of(config), infos, source.name)
    return [PlannedTensor(name, *found[name]) for name in sorted(kept, key=lambda name: (places[name], name))]


def _bytes_of(source: Path, places: dict[str, str]) -> int:
    return sum((source / file).stat().st_size for file in set(places.values()))


def _confine(largest: int) -> None:
    limit, allowed = _ROOM_BYTES + 3 * largest, resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = limit if allowed == resource.RLIM_INFINITY else min(limit, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _FORBIDDEN:
            raise PermissionError(f"a converter may not {event}")

    sys.addaudithook(refuse)


def _main(source: Path, out: Path) -> int:
    try:
        sizes = [(source / name).stat().st_size for name in pickle_files(source)]
        if not is_adapter(source):
            # Libraries that this needs load others, which is over before a pickle is opened.
            architecture_of(read_config(source))
        _confine(max(sizes))
        convert_folder(source, out)
    except (GlueError, MemoryError) as error:
        sys.stderr.write(json.dumps(str(error))[1:-1] + "\n")
        return DISK_FULL if isinstance(error, DiskFullError) else REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), Path(sys.argv[2])))
