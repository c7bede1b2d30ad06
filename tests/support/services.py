"""A whole service under its supervisor, as tests start, watch and kill it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.processes import recorded_pids
from workers.embedded.process import wait_for

SUPERVISOR = (sys.executable, "-P", "-m", "workers.supervisor")


@dataclass(frozen=True)
class Service:
    """A supervisor that said it is ready, what it said until then, and where it lives."""

    process: subprocess.Popen[str]
    home: Path
    said: str
    url: str
    api_key: str

    @property
    def pids(self) -> dict[str, int]:
        """The number of each part's process, by name."""
        return recorded_pids(self.home)

    @property
    def client(self) -> httpx.Client:
        """A client that carries the key."""
        headers = {"Authorization": f"Bearer {self.api_key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)

    def is_ready(self) -> bool:
        """Whether the API can serve now."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> str:
        """Ask it to stop; the rest of what it said."""
        self.process.send_signal(number)
        return self.process.communicate(timeout=60)[0]


@contextmanager
def launched(
    home: Path, *options: str, environment: Mapping[str, str] | None = None, command: Sequence[str] = SUPERVISOR
) -> Iterator[subprocess.Popen[str]]:
    """A supervisor on `home`, stopped at the latest on leaving."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    with subprocess.Popen(
        [*command, "--home", str(home), *options],
        env={**inherited, "HF_HUB_OFFLINE": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def service(
    home: Path, *options: str, environment: Mapping[str, str] | None = None, command: Sequence[str] = SUPERVISOR
) -> Iterator[Service]:
    """A ready service on `home`; `options` are the supervisor's. On a port of the kernel's choice unless told."""
    options = options if "--port" in options else (*options, "--port", "0")
    with launched(home, *options, environment=environment, command=command) as process:
        said = _until_ready(process)
        client = json.loads((home / "client.json").read_text())
        yield Service(process, home, said, client["url"], client["api_key"])


def _until_ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if re.search("Ctrl-C stops", line):
            return said
    raise AssertionError(f"the service did not start:\n{said}")


def comes_back(running: Service, name: str, killed: int, seconds: float = 30.0) -> bool:
    """Whether the part `name`, whose process `killed` was killed, runs again as another and the API is ready."""
    return wait_for(lambda: running.pids.get(name, killed) != killed and running.is_ready(), seconds)
