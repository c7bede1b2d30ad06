"""As whom, and where, a server runs that refuses to run as root; knows nothing of Postgres but its folders."""

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workers.embedded.files import write_private
from workers.embedded.process import ServerError

NOBODY = 65534
# Folders of root that every account may search; the first is not swept by cleaners of temporary files.
SHELTERS = (Path("/var/lib"), Path("/var/tmp"))  # noqa: S108  # made with mkdtemp, remembered in the home
_NAMESPACE = ("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}")


@dataclass(frozen=True)
class Account:
    """How a command runs as somebody: a prefix of its arguments, a uid (and gid) to take, whose the files must be."""

    prefix: tuple[str, ...]
    user: int | None
    owner: int


@dataclass(frozen=True)
class Place:
    """Where a server lives: its binaries, its own folder, and the account for both."""

    account: Account
    binaries: Path
    folder: Path


def find_place(folder: Path, binaries: Path, shelters: Sequence[Path] = SHELTERS) -> Place:
    """Prepare `folder` for a server that refuses root, and say how to run it. No parent's mode is ever touched.

    An ordinary user runs it directly. Root runs it in a user namespace, which sees whatever root's own files hold,
    or, where the kernel refuses that, as uid 65534: in `folder` if that account can reach it, else in a folder of
    its own under one of `shelters`, named in the file `elsewhere`, with the binaries copied beside the data.

    Raises:
        ServerError: the folder is another user's, or no place works.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = folder.stat().st_uid
    if owner not in {os.geteuid(), NOBODY if os.geteuid() == 0 else os.geteuid()}:
        raise ServerError(f"{folder} belongs to uid {owner}: start the service as that user, or use another --home.")
    if os.geteuid() != 0:
        return Place(Account((), None, os.geteuid()), binaries, folder)
    if not (folder / "elsewhere").exists():
        for account in (Account(_NAMESPACE, None, 0), Account((), NOBODY, NOBODY)):
            if _can_run(account, folder.parent, binaries):
                _give(folder, account.owner)
                return Place(account, binaries, folder)
    return _place_elsewhere(folder / "elsewhere", binaries, shelters)


def _can_run(account: Account, folder: Path, binaries: Path) -> bool:
    """Whether `account` can enter `folder` and execute the server."""
    script = 'cd "$0" && exec "$1" --version'
    command = [*account.prefix, "sh", "-c", script, str(folder), str(binaries / "bin" / "postgres")]
    user = account.user
    try:
        done = subprocess.run(
            command, user=user, group=user, extra_groups=None if user is None else (), capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


def _place_elsewhere(pointer: Path, binaries: Path, shelters: Sequence[Path]) -> Place:
    account = Account((), NOBODY, NOBODY)
    roof = Path(pointer.read_text()) if pointer.exists() else _new_roof(pointer, shelters)
    if not roof.is_dir() or roof.is_symlink() or roof.stat().st_uid != 0:
        raise ServerError(
            f"{pointer} names {roof}, which is not a folder of root: the database that lay there is gone."
        )
    copied = roof / "binaries"
    if not copied.exists() or (copied / "source").read_text() != _fingerprint(binaries):
        _copy_binaries(binaries, copied)
    folder = roof / "postgres"
    folder.mkdir(mode=0o700, exist_ok=True)
    _give(folder, NOBODY)
    if not _can_run(account, folder, copied):
        raise ServerError(
            f"Postgres runs neither in a user namespace nor as uid {NOBODY} under {roof}. "
            "Start the service as an ordinary user, or set DATABASE_URL."
        )
    return Place(account, copied, folder)


def _new_roof(pointer: Path, shelters: Sequence[Path]) -> Path:
    for shelter in shelters:
        try:
            roof = Path(tempfile.mkdtemp(prefix="glue-", dir=shelter))
        except OSError:
            continue
        roof.chmod(0o711)
        write_private(pointer, str(roof))
        return roof
    raise ServerError(
        f"No folder could be made under {' or '.join(map(str, shelters))} for Postgres; set DATABASE_URL."
    )


def _fingerprint(binaries: Path) -> str:
    server = (binaries / "bin" / "postgres").stat()
    return f"{binaries} {server.st_size} {server.st_mtime_ns}"


def _copy_binaries(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    fresh = target.with_name("binaries.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    (fresh / "source").write_text(_fingerprint(source))
    for path in (fresh, *fresh.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | stat.S_IRGRP | stat.S_IROTH | (0o011 if path.is_dir() else 0))
    for path in (fresh / "bin").iterdir():
        path.chmod(0o755)
    fresh.rename(target)


def _give(folder: Path, owner: int) -> None:
    """Make `folder` and all in it `owner`'s; the folder itself last, so that an interrupted run is repeated."""
    if folder.stat().st_uid == owner:
        return
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(Path(parent) / name, owner, owner, follow_symlinks=False)
    os.chown(folder, owner, owner)
