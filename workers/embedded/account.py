"""As whom, and where, a server runs that refuses to run as root; knows nothing of Postgres but its folders."""

import os
import pwd
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
_PROGRAMS = Path("pginstall") / "bin"
_NAMESPACE = ("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}")


@dataclass(frozen=True)
class Account:
    """How a command runs as somebody: a prefix of its arguments, a uid (and gid) to take, whose the files must be."""

    prefix: tuple[str, ...]
    user: int | None
    owner: int


@dataclass(frozen=True)
class Place:
    """Where a server lives: the folder of its programs, the folder of its files, and the account for both."""

    account: Account
    binaries: Path
    folder: Path


def find_place(folder: Path, wheel: Path, shelters: Sequence[Path] = SHELTERS) -> Place:
    """Prepare `folder` for a server that refuses root, and say how to run it. No parent's mode is ever touched.

    An ordinary user runs it directly; one without a name (a container's arbitrary uid), which Postgres does not accept
    either, in a user namespace if the kernel allows. Root runs it in a user namespace, which sees what root's own
    files hold, or, where the kernel refuses that, as uid 65534: in `folder` if that account can reach it, else in a
    folder of its own under one of `shelters`, named in the file `elsewhere`, with the `wheel` copied beside the data.

    Raises:
        ServerError: the folder is another user's, or no place works.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    uid, owner = os.geteuid(), folder.stat().st_uid
    if owner not in ({0, NOBODY} if uid == 0 else {uid}):
        raise ServerError(f"{folder} belongs to uid {owner}: start the service as that user, or use another --home.")
    if uid != 0:
        namespace = Account(_NAMESPACE, None, uid)
        direct = _has_name(uid) or not _can_run(namespace, folder, wheel)
        return Place(Account((), None, uid) if direct else namespace, wheel / _PROGRAMS, folder)
    if not (folder / "elsewhere").exists():
        for account in (Account(_NAMESPACE, None, 0), Account((), NOBODY, NOBODY)):
            if _can_run(account, folder.parent, wheel):
                _give(folder, account.owner)
                return Place(account, wheel / _PROGRAMS, folder)
    return _place_elsewhere(folder / "elsewhere", wheel, shelters)


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _can_run(account: Account, folder: Path, wheel: Path) -> bool:
    """Whether `account` can enter `folder` and execute the wheel's programs, libraries and all."""
    script = 'cd "$0" && exec "$1" --version'
    command = [*account.prefix, "sh", "-c", script, str(folder), str(wheel / _PROGRAMS / "initdb")]
    groups = None if account.user is None else ()
    try:
        done = subprocess.run(
            command, user=account.user, group=account.user, extra_groups=groups, capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


def _place_elsewhere(pointer: Path, wheel: Path, shelters: Sequence[Path]) -> Place:
    account = Account((), NOBODY, NOBODY)
    roof = Path(pointer.read_text()) if pointer.exists() else _new_roof(pointer, shelters)
    if not roof.is_dir() or roof.is_symlink() or roof.stat().st_uid != 0:
        raise ServerError(f"{pointer} names {roof}, which is no folder of root: its database is gone.")
    copied = _copy_wheel(wheel, roof / "wheel")
    folder = roof / "postgres"
    folder.mkdir(mode=0o700, exist_ok=True)
    _give(folder, NOBODY)
    if not _can_run(account, folder, copied):
        raise ServerError(
            f"Postgres runs neither in a user namespace nor as uid {NOBODY} under {roof}. "
            "Start the service as an ordinary user, or set DATABASE_URL."
        )
    return Place(account, copied / _PROGRAMS, folder)


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


def _copy_wheel(wheel: Path, target: Path) -> Path:
    """The wheel's package inside `target`, its libraries beside it as the programs expect; copied when it changed."""
    server = (wheel / _PROGRAMS / "postgres").stat()
    source = f"{wheel} {server.st_size} {server.st_mtime_ns}"
    if not target.exists() or (target / "source").read_text() != source:
        shutil.rmtree(target, ignore_errors=True)
        fresh = target.with_name("wheel.new")
        shutil.rmtree(fresh, ignore_errors=True)
        for folder in (wheel, wheel.with_name(f"{wheel.name}.libs")):
            unneeded = shutil.ignore_patterns("include", "*.a", "*.py", "__pycache__")
            shutil.copytree(folder, fresh / folder.name, symlinks=True, ignore=unneeded)
        (fresh / "source").write_text(source)
        _open_to_all(fresh)
        fresh.rename(target)
    return target / wheel.name


def _open_to_all(folder: Path) -> None:
    """Let every account read `folder` and run what its owner may run."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | 0o044 | (0o011 if mode & stat.S_IXUSR else 0))


def _give(folder: Path, owner: int) -> None:
    """Make `folder` and all in it `owner`'s; the folder itself last, so that an interrupted run is repeated."""
    if folder.stat().st_uid == owner:
        return
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(Path(parent) / name, owner, owner, follow_symlinks=False)
    os.chown(folder, owner, owner)
