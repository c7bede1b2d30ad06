"""A large file written once, from front to back: hashed and brought to the disk while later bytes are still made.

Knows nothing of what is in it. What is on the disk does not stay in memory: a page cache full of unwritten pages
slows down whoever writes more than the copy itself does.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

# A whole number of pages, so that a chunk can go to the disk past the page cache.
CHUNK_BYTES = 4 * 1024 * 1024
# So many whole chunks may wait for the hash and the disk before whoever makes the bytes has to wait.
WAITING_CHUNKS = 8
PAGE_BYTES = 4096
# Where the page cache cannot be passed by: written back and dropped in portions of so many chunks.
FLUSHED_CHUNKS = 16
CONSUMERS = 2


@dataclass
class _Chunk:
    """A part of the file in memory; `missing` bytes are still to come."""

    buffer: Tensor
    missing: int
    consumers: int = field(default=CONSUMERS)


class StreamedFile:
    """A file of known size; every byte is given once, from any thread, more or less in order.

    Memory holds what was given ahead of the first byte that is missing, and a few chunks besides.

    Raises:
        OSError: at once, when the space for the whole file cannot be had.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._size = size
        self._descriptor = _open_for_streaming(path)
        try:
            os.posix_fallocate(self._descriptor, 0, max(1, size))
        except BaseException:
            os.close(self._descriptor)
            raise
        self._hash = hashlib.sha256()
        self._state = threading.Condition()
        self._chunks: dict[int, _Chunk] = {}
        self._spare: list[Tensor] = []
        self._whole = 0
        self._freed = 0
        self._error: BaseException | None = None
        self._closed = False
        self._consumers = [self._consumer(consume) for consume in (self._digest, self._store)]

    def write(self, position: int, block: Tensor) -> None:
        """Take the bytes of a flat tensor for the file's bytes from `position` on; a copy is made.

        Raises:
            OSError: something that was given before could not be written.
        """
        data = block.view(torch.uint8)
        while len(data):
            index, offset = divmod(position, CHUNK_BYTES)
            count = min(len(data), CHUNK_BYTES - offset)
            chunk = self._chunk(index)
            chunk.buffer[offset : offset + count].copy_(data[:count])
            self._arrived(chunk, count)
            data, position = data[count:], position + count

    def finish(self) -> str:
        """Wait until every byte is durable; the file's sha256 in hexadecimal.

        Raises:
            OSError: something could not be written.
            ValueError: bytes are missing.
        """
        with self._state:
            if self._whole < self._count and self._error is None:
                raise ValueError("not every byte of the file was given")
        self._join()
        if self._error is not None:
            raise self._error
        os.ftruncate(self._descriptor, self._size)
        os.fsync(self._descriptor)
        self.abandon()
        return self._hash.hexdigest()

    def abandon(self) -> None:
        """Stop and close the file; it stays as far as it is written."""
        if self._closed:
            return
        with self._state:
            self._closed = True
            self._state.notify_all()
        self._join()
        os.close(self._descriptor)

    @property
    def _count(self) -> int:
        return -(-self._size // CHUNK_BYTES)

    def _chunk(self, index: int) -> _Chunk:
        with self._state:
            while True:
                if self._error is not None:
                    raise self._error
                if index in self._chunks:
                    return self._chunks[index]
                # Only whole chunks count here, and they go without anybody's help: nobody waits for ever.
                if self._whole - self._freed <= WAITING_CHUNKS:
                    break
                self._state.wait()
            buffer = self._spare.pop() if self._spare else _pages(CHUNK_BYTES)
            size = min(CHUNK_BYTES, self._size - index * CHUNK_BYTES)
            chunk = self._chunks[index] = _Chunk(buffer, size)
            return chunk

    def _arrived(self, chunk: _Chunk, count: int) -> None:
        with self._state:
            chunk.missing -= count
            before = self._whole
            while self._whole in self._chunks and not self._chunks[self._whole].missing:
                self._whole += 1
            if self._whole > before:
                self._state.notify_all()

    def _consumer(self, consume: Callable[[int, Tensor], None]) -> threading.Thread:
        thread = threading.Thread(target=self._consume_all, args=(consume,), name="stream", daemon=True)
        thread.start()
        return thread

    def _consume_all(self, consume: Callable[[int, Tensor], None]) -> None:
        try:
            for index in range(self._count):
                chunk = self._await(index)
                if chunk is None:
                    return
                consume(index, chunk.buffer)
                self._release(index, chunk)
        except BaseException as error:
            with self._state:
                self._error = self._error or error
                self._state.notify_all()

    def _await(self, index: int) -> _Chunk | None:
        with self._state:
            self._state.wait_for(lambda: self._whole > index or self._closed or self._error is not None)
            return self._chunks[index] if self._whole > index and self._error is None else None

    def _release(self, index: int, chunk: _Chunk) -> None:
        with self._state:
            chunk.consumers -= 1
            if not chunk.consumers:
                del self._chunks[index]
                self._spare.append(chunk.buffer)
                self._freed += 1
                self._state.notify_all()

    def _digest(self, index: int, buffer: Tensor) -> None:
        self._hash.update(buffer.numpy().data[: self._size - index * CHUNK_BYTES])

    def _store(self, index: int, buffer: Tensor) -> None:
        start = index * CHUNK_BYTES
        # Whole pages: what is too much at the end is cut off when the file is finished.
        size = min(CHUNK_BYTES, -(-(self._size - start) // PAGE_BYTES) * PAGE_BYTES)
        if not _write_at(self._descriptor, buffer.numpy().data[:size], start) and (index + 1) % FLUSHED_CHUNKS == 0:
            os.fdatasync(self._descriptor)
            os.posix_fadvise(self._descriptor, 0, start + size, os.POSIX_FADV_DONTNEED)

    def _join(self) -> None:
        for thread in self._consumers:
            thread.join()


def _pages(size: int) -> Tensor:
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)


def _open_for_streaming(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o644)


def _write_at(descriptor: int, view: memoryview, position: int) -> bool:
    """Write all of the view; whether it went past the page cache, which some file systems refuse only now."""
    direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
    while view:
        try:
            count = os.pwrite(descriptor, view, position)
        except OSError as error:
            if error.errno != errno.EINVAL or not direct:
                raise
            fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)
            direct = False
            continue
        view, position = view[count:], position + count
    return direct
