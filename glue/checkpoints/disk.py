"""Writing files so that after a crash they are whole or absent. Knows nothing of what is in them."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glue.specs.errors import DiskFullError

TEMPORARY = ".tmp."
# The token of runs outside a lease: two that meet in a `work_folder` write the same bytes.
TOKEN = 0


@contextmanager
def full_disk_is_told(path: Path) -> Iterator[None]:
    """Turn the system's `no space left` and `quota exceeded` into a DiskFullError that says where."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError(f"the disk is full: {path.name} could not be written below {path.parent}") from None
        raise


def temporary(path: Path, token: int) -> Path:
    """The name under which the holder of `token` writes `path` until it is whole."""
    return path.with_name(f"{path.name}{TEMPORARY}{token}")


def write_whole(path: Path, content: bytes, token: int) -> None:
    """Write a small file durably: under a temporary name, flushed, renamed, the folder flushed.

    Raises:
        DiskFullError: there is no space.
    """
    partial = temporary(path, token)
    with full_disk_is_told(path):
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
            flush_folder(path.parent)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def flush_folder(folder: Path) -> None:
    """Make renames and new names in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def work_folder(out: Path, inputs_digest: str) -> Path:
    """Where the folder `out` is built, beside its place: the same for the same inputs, so that a killed run goes on."""
    return out.with_name(f".{out.name}.{inputs_digest[:16]}.partial")


def give_name(work: Path, out: Path) -> None:
    """Move a whole result from its work folder to its place, durably."""
    work.rename(out)
    flush_folder(out.parent)


def remove_temporaries(folder: Path) -> None:
    """Remove what earlier, killed writers left unfinished in the folder and below it."""
    for path in folder.rglob(f"*{TEMPORARY}*"):
        path.unlink(missing_ok=True)
