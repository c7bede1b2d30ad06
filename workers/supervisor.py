"""`python -m workers.supervisor`: the whole service on one machine, from its servers to its workers, until Ctrl-C.

It knows which parts there are and in which order; what each of them does is the part's own affair. It has one
thread, because its children get their death signal when the thread that started them ends.
"""

import argparse
import base64
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import httpx
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from glue.records.database import Database
from glue.records.keys import create_key, find_owner
from glue.records.schema import upgrade
from glue.records.sealing import KEY_BYTES
from glue.specs.plan import WorkerClass
from workers.app import worker_command
from workers.embedded.files import lock_home, write_private
from workers.embedded.postgres import PostgresServer
from workers.embedded.process import Child, ServerError, wait_for
from workers.embedded.valkey import ValkeyServer
from workers.parts import Part

OWNER = "local"
DEFAULT_PORT = 8321
_READY_SECONDS = 60.0
_LOOK_SECONDS = 0.2
# How long each kind of part may take to end before it is killed.
_WORKER_SECONDS, _API_SECONDS = 30.0, 6.0


@dataclass(frozen=True)
class Options:
    """What the person asked for. Without a `port`, the first free one from 8321 on is taken."""

    home: Path
    port: int | None
    workers: int
    roots: tuple[Path, ...]


class Supervisor:
    """Starts the parts in order, starts again what dies, and stops all in the opposite order."""

    def __init__(self, options: Options, console: Console) -> None:
        home = self._home = options.home
        self._options = options
        self._console = console
        self._postgres = None if os.environ.get("DATABASE_URL") else PostgresServer(home)
        # An empty REDIS_URL is a choice too: no broker, workers poll.
        self._valkey = None if "REDIS_URL" in os.environ else ValkeyServer(home)
        self._servers: list[Part] = []
        self._api: Part | None = None
        self._workers: list[Part] = []
        self._given: Mapping[str, str] = {}

    def run(self) -> None:
        """Serve until SIGINT, SIGTERM or SIGHUP.

        Raises:
            ServerError: the home is in use, the port is taken, or a part did not start.
        """
        with lock_home(self._home), _open_port(self._options.port) as listener:
            _rotate_logs(self._home / "logs")
            _end_orphans(self._home)
            try:
                with _stop_signals():
                    self._start(listener)
                    self._tend()
            except KeyboardInterrupt:
                self._say("stopping; once more to kill")
            finally:
                self._stop()

    def _start(self, listener: socket.socket) -> None:
        began = time.monotonic()
        for server in self._embedded():
            part = Part(server.child, server.start, self._say)
            self._servers.append(part)
            with self._timed(server.child.name):
                part.start()
        self._given = self._environment()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with self._timed("migrations"):
                upgrade(self._given["DATABASE_URL"])
            key, is_new = _client_key(self._home / "client.json", self._given["DATABASE_URL"], url)
        except SQLAlchemyError as error:
            raise ServerError(f"The database cannot be used: {error}") from error
        self._start_api(listener, url)
        self._start_workers()
        self._welcome(url, key if is_new or self._console.is_terminal else None, time.monotonic() - began)

    def _start_api(self, listener: socket.socket, url: str) -> None:
        # The API takes over a socket that stays ours: while it is started again, callers wait instead of failing.
        number = listener.fileno()
        command = [sys.executable, "-m", "uvicorn", "api.app:app", "--fd", str(number), "--no-use-colors"]
        command += ["--timeout-graceful-shutdown", "3"]
        part = self._api = self._part("api", command, inherit=(number,))
        with self._timed("api"):
            part.start()
            answered = wait_for(lambda: not part.child.running or _is_ready(url), _READY_SECONDS)
            if not answered or not part.child.running:
                raise ServerError(f"The API did not start. The end of {part.child.log}:\n{part.child.log_tail()}")

    def _start_workers(self) -> None:
        classes = [each.value for each in WorkerClass]
        self._workers.append(self._part("maintenance", [sys.executable, "-m", "workers.maintenance"]))
        for number in range(1, self._options.workers + 1):
            name = f"worker-{number}"
            self._workers.append(self._part(name, worker_command(name, classes)))
        for part in self._workers:
            with self._timed(part.child.name):
                part.start()

    def _part(self, name: str, command: Sequence[str], inherit: Sequence[int] = ()) -> Part:
        child = Child(name, self._home)
        return Part(child, lambda: child.start(command, self._given, self._home / "run", inherit=inherit), self._say)

    def _embedded(self) -> list[PostgresServer | ValkeyServer]:
        return [server for server in (self._postgres, self._valkey) if server]

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "DATABASE_URL": self._postgres.url if self._postgres else os.environ["DATABASE_URL"],
            "REDIS_URL": self._valkey.url if self._valkey else os.environ["REDIS_URL"],
            "GLUE_HOME": str(self._home),
            "GLUE_ROOTS": os.pathsep.join(map(str, self._options.roots)),
            "GLUE_SECRET_KEY": os.environ.get("GLUE_SECRET_KEY") or _secret_key(self._home / "secret.key"),
            # A folder named like one of our packages, wherever this was started, must not take its place.
            "PYTHONSAFEPATH": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def _tend(self) -> None:
        while True:
            for part in self._servers:
                part.tend()
            if self._environment() != self._given:
                self._move_to_new_addresses()
            for part in filter(None, (self._api, *self._workers)):
                part.tend()
            time.sleep(_LOOK_SECONDS)

    def _move_to_new_addresses(self) -> None:
        """A server came back on another port: everybody who knew the old one is ended, and so started again."""
        self._given = self._environment()
        _end([part for part in (self._api, *self._workers) if part], _API_SECONDS)

    def _stop(self) -> None:
        began = time.monotonic()
        _end(self._workers, _WORKER_SECONDS)
        _end([self._api] if self._api else [], _API_SECONDS)
        for server in reversed(self._embedded()):
            server.stop()
        self._say(f"stopped in {time.monotonic() - began:.1f} s")

    def _welcome(self, url: str, key: str | None, seconds: float) -> None:
        self._say(f"\nReady after {seconds:.1f} s: {url}")
        kept = self._home / "client.json"
        self._say(f"API key: {key} (kept in {kept}, where `glue` finds it)" if key else f"API key: in {kept}")
        self._say(f"Logs: {self._home / 'logs'}. Ctrl-C stops everything.\n")

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._say(f"  {name:<12}{time.monotonic() - began:6.2f} s")

    def _say(self, line: str) -> None:
        # The terminal may be gone; the service is not.
        with suppress(OSError):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _end(parts: Sequence[Part], seconds: float) -> None:
    """Ask all of them to end, then kill those that have not within `seconds`."""
    deadline = time.monotonic() + seconds
    for part in parts:
        part.child.send(signal.SIGTERM)
    for part in parts:
        part.child.wait(max(0.0, deadline - time.monotonic()))


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Inside, the first signal that asks to stop raises KeyboardInterrupt; any later one simply kills."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    heard = [number for number in numbers if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]

    def handle(how: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        for number in heard:
            signal.signal(number, how)

    def stop(number: int, frame: FrameType | None) -> None:
        handle(signal.SIG_DFL)
        raise KeyboardInterrupt

    handle(stop)
    try:
        yield
    finally:
        handle(signal.SIG_DFL)


@contextmanager
def _open_port(wanted: int | None) -> Iterator[socket.socket]:
    """A socket bound to 127.0.0.1 on the wanted port, or on the first free one from the default on."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # uvicorn takes a socket handed over for a Unix one and leaves Nagle's delay on; accepted ones inherit this.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for port in [wanted] if wanted is not None else range(DEFAULT_PORT, DEFAULT_PORT + 100):
            try:
                listener.bind(("127.0.0.1", port))
                # Only a listening socket keeps others away; who calls before the API is up waits for it.
                listener.listen()
            except OSError:
                continue
            break
        else:
            raise ServerError(f"Port {wanted or DEFAULT_PORT} of 127.0.0.1 is taken; choose another with --port.")
        yield listener


def _rotate_logs(folder: Path) -> None:
    for log in folder.glob("*.log"):
        log.replace(log.with_name(f"{log.name}.1"))


def _end_orphans(home: Path) -> None:
    """End what an earlier supervisor left, also parts that this one has not; the servers see to themselves."""
    for file in (home / "run").glob("*.pid"):
        if file.stem not in ("postgres", "valkey"):
            Child(file.stem, home).recover()


def _client_key(path: Path, database_url: str, url: str) -> tuple[str, bool]:
    """The key in `path`, or a new one when there is none that the database knows; `path` then holds it and `url`."""
    database = Database(database_url, pool_size=1)
    known = json.loads(path.read_text()).get("api_key", "") if path.exists() else ""
    with database.transaction() as session:
        is_new = find_owner(session, known) is None
        key = create_key(session, OWNER, "glue up")[1] if is_new else known
    database.dispose()
    write_private(path, json.dumps({"url": url, "api_key": key}, indent=2) + "\n")
    return key, is_new


def _secret_key(path: Path) -> str:
    """The master key under which owners' tokens are sealed: kept beside the database, made once."""
    if not path.exists():
        write_private(path, base64.b64encode(os.urandom(KEY_BYTES)).decode() + "\n")
    return path.read_text().strip()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="workers.supervisor", description="Run the whole service until Ctrl-C.")
    parser.add_argument("--home", type=Path, help="where everything is kept; default: $GLUE_HOME or ~/.glue")
    parser.add_argument(
        "--port", type=int, help=f"of the API, 0 for any; default: the first free one from {DEFAULT_PORT} on"
    )
    parser.add_argument("--workers", type=int, default=1, help="how many units may run at once; default: 1")
    parser.add_argument(
        "--root", type=Path, action="append", help="a folder that jobs may read; default: $GLUE_ROOTS or this folder"
    )
    given = parser.parse_args(arguments)
    if given.workers < 0:
        parser.error("--workers cannot be negative")
    if missing := [root for root in given.root or () if not root.expanduser().is_dir()]:
        parser.error(f"--root {missing[0]} is not a folder")
    home = given.home or Path(os.environ.get("GLUE_HOME") or Path.home() / ".glue")
    roots = given.root or [Path(root) for root in os.environ.get("GLUE_ROOTS", "").split(os.pathsep) if root]
    return Options(
        home=home.expanduser().resolve(),
        port=given.port,
        workers=given.workers,
        roots=tuple(root.expanduser().resolve() for root in roots or [Path.cwd()]),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until stopped; the exit status."""
    console = Console()
    try:
        Supervisor(_options(arguments), console).run()
    except ServerError as error:
        console.print(error.detail, markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
