import errno
import hashlib
import os
import random
import threading
from pathlib import Path

import pytest
import torch

from glue.checkpoints import streamed
from glue.checkpoints.streamed import StreamedFile

CHUNK = 8192


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "CHUNK_BYTES", CHUNK)


def content(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))


def write_all(file: StreamedFile, data: torch.Tensor, starts: list[int], step: int) -> None:
    for start in starts:
        file.write(start, data[start : start + step])


@pytest.mark.parametrize("past_the_cache", [True, False])
@pytest.mark.parametrize("size", [1, 100, CHUNK, CHUNK + 1, 50 * CHUNK - 3])
def test_the_file_holds_what_was_given_and_the_digest_is_its_own(
    tmp_path: Path, size: int, past_the_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not past_the_cache:
        monkeypatch.setattr(os, "O_DIRECT", 0)
    data = content(size)
    file = StreamedFile(tmp_path / "file", size)
    write_all(file, data, list(range(0, size, 1000)), 1000)
    assert file.finish() == hashlib.sha256(data.numpy()).hexdigest()
    assert (tmp_path / "file").read_bytes() == data.numpy().tobytes()


def test_blocks_may_come_in_any_order_and_from_several_threads(tmp_path: Path) -> None:
    data = content(40 * CHUNK)
    starts = list(range(0, len(data), 512))
    random.Random(0).shuffle(starts)
    file = StreamedFile(tmp_path / "file", len(data))
    threads = [threading.Thread(target=write_all, args=(file, data, starts[part::3], 512)) for part in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.finish() == hashlib.sha256(data.numpy()).hexdigest()
    assert (tmp_path / "file").read_bytes() == data.numpy().tobytes()


def test_whoever_is_faster_than_the_disk_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    write = os.pwrite
    made: list[int] = []

    def slow(descriptor: int, view: memoryview, position: int) -> int:
        gate.wait()
        return write(descriptor, view, position)

    pages = streamed._pages

    def counted(size: int) -> torch.Tensor:
        made.append(size)
        return pages(size)

    monkeypatch.setattr(os, "pwrite", slow)
    monkeypatch.setattr(streamed, "_pages", counted)
    data = content(60 * CHUNK)
    file = StreamedFile(tmp_path / "file", len(data))
    thread = threading.Thread(target=write_all, args=(file, data, list(range(0, len(data), CHUNK)), CHUNK))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    gate.set()
    thread.join()
    assert file.finish() == hashlib.sha256(data.numpy()).hexdigest()
    assert len(made) <= streamed.WAITING_CHUNKS + 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_error_of_the_disk_reaches_the_writer(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int, view: memoryview, position: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", broken)
    data = content(60 * CHUNK)
    file = StreamedFile(tmp_path / "file", len(data))
    with pytest.raises(OSError, match=os.strerror(number)):
        write_all(file, data, list(range(0, len(data), CHUNK)), CHUNK)
    with pytest.raises(OSError, match=os.strerror(number)):
        file.finish()
    before = threading.active_count()
    file.abandon()
    assert threading.active_count() <= before


def test_direct_writes_that_are_refused_late_go_the_usual_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    refused: list[int] = []

    def picky(descriptor: int, view: memoryview, position: int) -> int:
        if not refused:
            refused.append(position)
            raise OSError(errno.EINVAL, "no direct writes here")
        return write(descriptor, view, position)

    monkeypatch.setattr(os, "pwrite", picky)
    data = content(5 * CHUNK + 10)
    file = StreamedFile(tmp_path / "file", len(data))
    write_all(file, data, [0], len(data))
    assert file.finish() == hashlib.sha256(data.numpy()).hexdigest()
    assert (tmp_path / "file").read_bytes() == data.numpy().tobytes()


def test_a_file_with_a_gap_is_not_finished(tmp_path: Path) -> None:
    file = StreamedFile(tmp_path / "file", 3 * CHUNK)
    file.write(0, content(CHUNK))
    file.write(2 * CHUNK, content(CHUNK))
    with pytest.raises(ValueError, match="not every byte"):
        file.finish()
    file.abandon()
