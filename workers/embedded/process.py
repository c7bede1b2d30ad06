"""A child process that never outlives its starter; knows nothing of what it runs."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from glue.specs.errors import GlueError

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_TICK = 0.02


class ServerError(GlueError):
    """A part of the service could not be started; the message names the part and its log."""


def tie_to_parent(death_signal: int = signal.SIGKILL) -> Callable[[], None]:
    """A `preexec_fn` after which the child gets `death_signal` when the calling thread ends, however it ends.

    Linux follows the thread, not the process: call Popen from a thread that lives as long as the child should.
    """
    parent = os.getpid()

    def tie() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:
            os._exit(1)

    return tie


def start_ticks(pid: int) -> int | None:
    """When the process `pid` started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def read_pid(pid_file: Path) -> int | None:
    """The process that a pid file speaks of, if it still runs: number and start time must agree."""
    try:
        pid, ticks = (int(line) for line in pid_file.read_text().split())
    except (OSError, ValueError):
        return None
    return pid if start_ticks(pid) == ticks else None


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """True as soon as `condition` holds; False when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_TICK)
    return True


class Child:
    """One named child of a home: `run/<name>.pid` (number, start time) and `logs/<name>.log` belong to it.

    It leads a session of its own, so Ctrl-C at the terminal reaches only the starter. `death_signal` is what it gets
    when the starter dies.
    """

    def __init__(self, name: str, home: Path, death_signal: int = signal.SIGKILL) -> None:
        self.name = name
        self.pid_file = home / "run" / f"{name}.pid"
        self.log = home / "logs" / f"{name}.log"
        self._death_signal = death_signal
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The number of the process last started, running or not."""
        return self._process.pid if self._process else None

    @property
    def returncode(self) -> int | None:
        """How it ended (negative: by that signal); None while it runs or before the first start."""
        return self._process.poll() if self._process else None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path | None = None,
        user: int | None = None,
        inherit: Sequence[int] = (),
    ) -> None:
        """Run `arguments` in `folder`, as uid and gid `user` if one is given; output goes to the end of the log.

        It inherits the file descriptors `inherit`. What still runs of an earlier start is killed first.
        """
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.wait(0.0)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                list(arguments),
                env=dict(environment),
                cwd=folder,
                user=user,
                group=user,
                extra_groups=None if user is None else (),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=inherit,
                start_new_session=True,
                preexec_fn=tie_to_parent(self._death_signal),
            )
        self.pid_file.write_text(f"{self._process.pid}\n{start_ticks(self._process.pid) or 0}\n")

    def send(self, number: int) -> None:
        """Send a signal if it runs."""
        if self._process:
            self._process.send_signal(number)

    def stop(self, number: int, seconds: float) -> bool:
        """Ask with signal `number`, wait, then SIGKILL the whole group; False when it had to be killed."""
        if self._process is None:
            return True
        self.send(number)
        return self.wait(seconds)

    def wait(self, seconds: float) -> bool:
        """Wait for its end at most `seconds`, then SIGKILL its group; False when it had to be killed."""
        if self._process is None:
            return True
        willing = wait_for(lambda: not self.running, seconds)
        if not willing:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self.pid_file.unlink(missing_ok=True)
        return willing

    def recover(self, seconds: float = 6.0) -> None:
        """End what an earlier starter left running under this name: its death signal, then SIGKILL."""
        for number in (self._death_signal, signal.SIGKILL):
            pid = read_pid(self.pid_file)
            if pid is None:
                break
            with suppress(ProcessLookupError):
                os.killpg(pid, number)
            wait_for(lambda: read_pid(self.pid_file) is None, seconds)
        self.pid_file.unlink(missing_ok=True)

    def log_tail(self, lines: int = 12) -> str:
        """The last lines of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
