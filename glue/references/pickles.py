"""What a file of pickled tensors holds: names, dtypes and shapes, read without running anything in it.

Format: since torch 1.6 `torch.save` writes a zip archive, not compressed, whose `data.pkl` describes the tensors and
whose other entries are their bytes. Reading the description takes a few ranges of the file. Never torch.
"""

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NoReturn

from glue.references.headers import DTYPE_BYTES
from glue.references.reading import refusal
from glue.specs.errors import GlueError

SINGLE_PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"

MAX_DESCRIPTION_BYTES = 8 * 1024 * 1024

# The end of an archive lists its entries; this much holds the list of almost any, so that one request does.
_WINDOW_BYTES = 64 * 1024
# The archive chooses what is read of it, up to this much.
_MAX_READ_BYTES = MAX_DESCRIPTION_BYTES + 2 * 1024 * 1024
_MAX_EXTENT, _MAX_DIMENSIONS = 2**40, 8
_STORAGES = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_CONVERT = "load the model where you trust it and save_pretrained() it as safetensors"

_INSTRUCTIONS = frozenset(
    code[0]
    for code in (
        pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE,
        pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE,
        pickle.SHORT_BINUNICODE, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
        pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.GLOBAL, pickle.STACK_GLOBAL,
        pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET, pickle.BINPERSID,
        pickle.REDUCE,
    )
)  # fmt: skip

ReadRange = Callable[[int, int], bytes]


@dataclass(frozen=True)
class PickledTensor:
    """One tensor as the archive describes it; the dtype is named as in safetensors."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """What it takes when it is stored by itself."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


def pickled_tensors(name: str, size: int, read: ReadRange) -> dict[str, PickledTensor]:
    """Every tensor of the file called `name`, of `size` bytes; `read(first, last)` gives a range of it.

    Raises:
        IncompatibleModelsError: it is damaged, older than torch 1.6, or holds something else than named tensors.
    """
    try:
        with zipfile.ZipFile(io.BufferedReader(_Ranges(size, read), _WINDOW_BYTES)) as archive:
            values = _Description(io.BytesIO(_description(name, archive))).load()
    except zipfile.BadZipFile:
        raise refusal("pickle", f"{name} is no archive of tensors, or one from before torch 1.6", _CONVERT) from None
    except GlueError:
        raise
    except Exception as error:  # zipfile and pickle raise what the file provokes; all of it is a refusal
        raise refusal("pickle", f"{name} holds something else than weights: {str(error)[:200]}", _CONVERT) from None
    if not isinstance(values, Mapping) or not all(isinstance(value, PickledTensor) for value in values.values()):
        raise refusal("pickle", f"{name} holds something else than named tensors", _CONVERT)
    return dict(values)


def _description(name: str, archive: zipfile.ZipFile) -> bytes:
    entries = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
    if len(entries) != 1 or entries[0].compress_type != zipfile.ZIP_STORED:
        raise refusal("pickle", f"{name} is no archive of tensors", _CONVERT)
    if entries[0].file_size > MAX_DESCRIPTION_BYTES:
        raise refusal("too_large", f"{name} describes its tensors in {entries[0].file_size} bytes", _CONVERT)
    return archive.read(entries[0])


class _Ranges(io.RawIOBase):
    """A file of which only what is read is fetched."""

    def __init__(self, size: int, read: ReadRange) -> None:
        super().__init__()
        self._size, self._read, self._position = size, read, 0
        self._left = _MAX_READ_BYTES
        self._tail_start = max(0, size - _WINDOW_BYTES)

    @cached_property
    def _tail(self) -> bytes:
        # The list of entries is found by several short looks at the end.
        return self._fetch(self._tail_start, self._size)

    def _fetch(self, first: int, last: int) -> bytes:
        self._left -= last - first
        if self._left < 0:
            raise zipfile.BadZipFile("its list of entries has no end")
        return self._read(first, last)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise zipfile.BadZipFile("an entry lies before the file")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        last = min(self._position + len(buffer), self._size)
        if last <= self._position:
            return 0
        if self._position >= self._tail_start:
            content = self._tail[self._position - self._tail_start : last - self._tail_start]
        else:
            content = self._fetch(self._position, last)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class _Description(pickle._Unpickler):
    """Builds descriptions where torch would build tensors; no other name is ever looked up, so none can be called.

    The interpreter in Python, with the instructions that `torch.save` uses and no others: nothing in the file sizes
    a table, nothing but text becomes a key, and nothing changes what was built and checked.
    """

    # The base's own, of which its stubs say nothing.
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return _KNOWN.get((module, name)) or _refuse(module, name)

    def persistent_load(self, pid: Any) -> str:
        kind, dtype, *_ = pid
        if kind != "storage" or dtype not in _STORAGES.values():
            raise pickle.UnpicklingError("a reference to something else than a tensor's bytes")
        return str(dtype)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def set_items(self) -> None:
        self._put(self.pop_mark())

    def build(self) -> None:
        # Notes on a state's modules, which say nothing of its tensors.
        self.stack.pop()

    def _put(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or not all(type(key) is str for key in items[::2]):
            raise pickle.UnpicklingError("a mapping with keys that are no names")
        target.update(zip(items[::2], items[1::2], strict=True))

    dispatch = {code: pickle._Unpickler.dispatch[code] for code in _INSTRUCTIONS} | {  # type: ignore[assignment]
        pickle.SETITEM[0]: set_item,
        pickle.SETITEMS[0]: set_items,
        pickle.BUILD[0]: build,
    }


def _refuse(module: str, name: str) -> NoReturn:
    raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _tensor(storage: Any, offset: Any, shape: Any, *rest: Any) -> PickledTensor:
    is_shape = type(shape) is tuple and len(shape) <= _MAX_DIMENSIONS
    if not is_shape or type(storage) is not str or storage not in _STORAGES.values():
        raise pickle.UnpicklingError("a tensor without bytes or shape")
    if not all(type(extent) is int and 0 <= extent < _MAX_EXTENT for extent in shape):
        raise pickle.UnpicklingError("a tensor without a shape")
    return PickledTensor(storage, tuple(shape))


def _mapping() -> dict[str, Any]:
    return {}


def _parameter(data: Any, *rest: Any) -> Any:
    return data


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _mapping,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
