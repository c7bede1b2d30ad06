"""Room for downloads: within the budget, the models that were used longest ago go, unless a job still needs them."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

from glue.references.hub_access import HubAccess
from glue.specs.errors import DiskFullError

COMPLETE = ".complete"
# What the folder of a model's pickles is called beyond the model's own, until they are converted.
RAW = ".pickles"

_SPARE_BYTES = 256 * 1024 * 1024


def make_room(access: HubAccess, needed: int, since: float) -> None:
    """Remove models until `needed` more bytes fit; none that a job needs or that was used after `since`.

    Raises:
        DiskFullError: they do not fit even so.
    """
    if needed <= 0:
        return
    with locked(access.cache, "room"):
        for model in _oldest(access, since):
            if _fits(access, needed):
                return
            forget(model, access.cache)
    if not _fits(access, needed):
        kept = f"{used_bytes(access.cache) / 1e9:.1f} GB are in use"
        limit = f"the budget is {access.budget / 1e9:.1f} GB" if access.budget else "the disk is full"
        raise DiskFullError(f"{needed / 1e9:.1f} GB of models have no room in the Hub cache: {limit}, {kept}")


@contextmanager
def locked(cache: Path, name: str) -> Iterator[None]:
    """Alone among all threads and processes that share the cache; the system frees the lock of one that dies."""
    (cache / "locks").mkdir(parents=True, exist_ok=True)
    with (cache / "locks" / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def used_bytes(cache: Path) -> int:
    """What downloads take on disk, finished or not, and what was converted from them."""
    converted = (file for file in (cache / "models").glob("*/*/*") if _names(file) == 1)
    return sum(size_of(file) for file in chain((cache / "blobs").glob("*"), converted))


def size_of(file: Path) -> int:
    """The bytes of a file; 0 of one that is not there, or that somebody else has just moved away."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def forget(model: Path, cache: Path) -> None:
    """Remove a model's folder, and of its files those that no other model has."""
    # First it stops to count as a model.
    (model / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(model, ignore_errors=True)
    for blob in (cache / "blobs").glob("*"):
        if blob.suffix == ".partial":
            # Somebody goes on with it.
            continue
        # Whoever fetches a file holds its lock until the file has its second name.
        with (cache / "locks" / blob.stem).open("w") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if blob.exists() and blob.stat().st_nlink == 1:
                blob.unlink()


def _names(file: Path) -> int:
    try:
        return file.stat().st_nlink
    except FileNotFoundError:
        return 0


def _fits(access: HubAccess, needed: int) -> bool:
    free = shutil.disk_usage(access.cache).free - _SPARE_BYTES
    allowed = access.budget - used_bytes(access.cache) if access.budget else free
    return needed <= min(allowed, free)


def _oldest(access: HubAccess, since: float) -> Iterator[Path]:
    folders = (access.cache / "models").glob("*/*")
    for used, folder in sorted((_last_use(folder), folder) for folder in folders):
        if used < since and str(folder).removesuffix(RAW) not in access.kept:
            yield folder


def _last_use(folder: Path) -> float:
    # A download that was given up has no mark.
    mark = folder / COMPLETE
    return (mark if mark.exists() else folder).stat().st_mtime
