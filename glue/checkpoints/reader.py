"""Reading tensors of a model folder with pread, so that memory holds only what was asked for. Knows no method."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from glue.checkpoints.dtypes import torch_dtype
from glue.references.folders import read_config
from glue.references.headers import TensorInfo, folder_tensors
from glue.specs.errors import IncompatibleModelsError


class Checkpoint:
    """A model folder opened for reading; safe to share between threads. A context manager.

    Files are read with pread rather than mapped: mapped pages count against the process, and a file that
    is cut while mapped kills it.
    """

    def __init__(self, folder: Path, config: dict[str, Any], tensors: dict[str, TensorInfo]) -> None:
        self.folder = folder
        self.config = config
        self.tensors = tensors
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a folder of safetensors; headers are checked, no tensor is read.

        Raises:
            IncompatibleModelsError: the folder is not a complete safetensors model.
        """
        return cls(folder, read_config(folder), folder_tensors(folder))

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The whole tensor, in its own dtype or converted to `dtype`.

        Raises:
            IncompatibleModelsError: there is no such tensor, or the file became shorter.
        """
        info = self.info(name)
        tensor = self.read_flat(name, 0, _elements(info)).reshape(info.shape)
        return tensor if dtype is None else tensor.to(dtype)

    def read_flat(self, name: str, start: int, stop: int) -> Tensor:
        """The elements from `start` to before `stop` of the flattened tensor, in its own dtype, freshly allocated."""
        info = self.info(name)
        dtype = torch_dtype(info.dtype)
        buffer = torch.empty((stop - start) * dtype.itemsize, dtype=torch.uint8)
        self._fill(info, buffer, start * dtype.itemsize)
        return buffer.view(dtype)

    def blocks(self, name: str, elements: int) -> Iterator[Tensor]:
        """The flattened tensor in order, in blocks of at most `elements`, in its own dtype."""
        total = _elements(self.info(name))
        for start in range(0, total, elements):
            yield self.read_flat(name, start, min(start + elements, total))

    def info(self, name: str) -> TensorInfo:
        """Where the tensor lies.

        Raises:
            IncompatibleModelsError: there is no such tensor.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise IncompatibleModelsError(f"{self.folder.name} has no tensor {name}") from None

    def close(self) -> None:
        """Close the files; later reads open them again."""
        with self._lock:
            descriptors, self._descriptors = list(self._descriptors.values()), {}
        for descriptor in descriptors:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _fill(self, info: TensorInfo, buffer: Tensor, offset: int) -> None:
        view = buffer.numpy().data
        position = info.start + offset
        if position + len(view) > info.end:
            raise IndexError(f"{info.name} ends before byte {offset + len(view)}")
        descriptor = self._descriptor(info.file)
        while view:
            count = os.preadv(descriptor, [view], position)
            if count == 0:
                raise IncompatibleModelsError(f"{info.file.name} became shorter while it was read")
            view, position = view[count:], position + count

    def _descriptor(self, file: Path) -> int:
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[file]


def _elements(info: TensorInfo) -> int:
    return (info.end - info.start) // torch_dtype(info.dtype).itemsize
