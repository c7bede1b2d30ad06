"""Small private files of a home (passwords, ports, its lock), each written whole or not at all."""

import fcntl
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.embedded.process import ServerError, wait_for

# Below the range from which the kernel takes ports of outgoing connections, so that nobody takes ours by accident.
_PORTS = range(20_000, 32_000)


def write_private(path: Path, text: str) -> None:
    """Replace `path` atomically with `text`, readable by its owner alone, on disk before this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def sync_folder(folder: Path) -> None:
    """Make the names inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def secret(path: Path) -> str:
    """The password kept in `path`; made up and stored there the first time."""
    if not path.exists():
        write_private(path, secrets.token_hex(24))
    return path.read_text()


def port_is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:`port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens; somebody may be faster, so be ready to ask again.

    Raises:
        ServerError: a hundred tries found none.
    """
    for _ in range(100):
        port = _PORTS[secrets.randbelow(len(_PORTS))]
        if port_is_free(port):
            return port
    raise ServerError("No free port of 127.0.0.1 was found between 20000 and 32000.")


def lasting_port(path: Path, patience: float = 2.0) -> int:
    """The port kept in `path`, so that addresses survive restarts; a new one the first time and when it stays taken."""
    try:
        port = int(path.read_text())
    except (OSError, ValueError):
        port = 0
    if not port or not wait_for(lambda: port_is_free(port), patience):
        port = free_port()
        write_private(path, str(port))
    return port


@contextmanager
def lock_home(home: Path) -> Iterator[None]:
    """Hold `home` alone; the kernel lets go of it when the holder dies.

    Raises:
        ServerError: another process holds it.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ServerError(
                f"{home} is in use by another supervisor (process {holder}). "
                "Stop that one first, or choose another folder with --home."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
