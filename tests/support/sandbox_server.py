"""A sandbox server of its own process, as little privileged as its container is."""

import os
import secrets
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from glue.evaluation.sandbox_client import run_remotely
from glue.sandbox.programs import Language, Limits, Verdict
from tests.support.chart_tools import ROOT
from workers.embedded.process import wait_for

# Root without any of its powers, as a container's user has none.
_POWERLESS = ("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--")


def free_port() -> int:
    """A port of loopback that nobody holds now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class SandboxServer:
    """Started and stopped at will; its port stays. `folder` is its /tmp, `package` where the package lies."""

    folder: Path
    slots: int = 1
    package: Path = ROOT
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where workers ask."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What its container is given, and a secret that no program may see."""
        return {
            "PATH": os.environ["PATH"],
            "TMPDIR": str(self.folder),
            "PYTHONPATH": str(self.package),
            "GLUE_SANDBOX_HOST": "127.0.0.1",
            "GLUE_SANDBOX_PORT": str(self.port),
            "GLUE_SANDBOX_TOKEN": self.token,
            "GLUE_SANDBOX_SLOTS": str(self.slots),
        }

    def start(self) -> "SandboxServer":
        """Start it and wait until it serves."""
        without = _POWERLESS if os.geteuid() == 0 else ()
        # Without `site`, so that no package but that of PYTHONPATH is found.
        command = [*without, sys.executable, "-S", "-P", "-m", "glue.sandbox.server"]
        self.process = subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL)
        assert wait_for(self.answers, 30)
        return self

    def answers(self) -> bool:
        """Whether it is healthy."""
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5).is_success
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def run(self, language: Language, source: str, limits: Limits | None = None) -> Verdict:
        """One program's verdict."""
        return run_remotely(self.url, self.token, language, source, limits or Limits(), patience=20)
