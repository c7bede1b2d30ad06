"""Processes as tests see them: which of a home still run, and what kills its starter on purpose."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from workers.embedded.process import wait_for


def recorded_pids(home: Path) -> dict[str, int]:
    """Name to number of every process that the home's pid files speak of."""
    return {file.stem: int(file.read_text().split()[0]) for file in (home / "run").glob("*.pid")}


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def all_gone(pids: list[int], seconds: float = 10.0) -> bool:
    """Whether all of them end within `seconds`."""
    return wait_for(lambda: not any(is_running(pid) for pid in pids), seconds)


def kill(pid: int) -> None:
    """SIGKILL one process."""
    psutil.Process(pid).send_signal(signal.SIGKILL)


@contextmanager
def python(code: str, *arguments: str, prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `code`, killed at the latest on leaving; read what it says from `stdout`."""
    command = [*prefix, sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def said(process: subprocess.Popen[str]) -> list[str]:
    """The words of the next line that the process says."""
    assert process.stdout is not None
    return process.stdout.readline().split()
