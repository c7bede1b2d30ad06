"""Commands run and measured: wall time, and the most anonymous memory of the process tree. Knows no command."""

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import psutil

SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Run:
    """A command's wall time, the most anonymous memory of its process tree, and what it wrote."""

    seconds: float
    anonymous_bytes: int
    output: str


def run(command: list[str], folder: Path, **environment: str) -> Run:
    """Run a command in a folder and watch it until it ends.

    Raises:
        RuntimeError: it failed.
    """
    began = time.monotonic()
    # Files rather than pipes: nobody reads while the command runs.
    with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
        full = os.environ | {"HF_HUB_OFFLINE": "1"} | environment
        process = subprocess.Popen(command, cwd=folder, env=full, stdout=output, stderr=errors)
        most = 0
        while process.poll() is None:
            most = max(most, _anonymous(process.pid))
            time.sleep(SAMPLE_SECONDS)
        seconds = time.monotonic() - began
        output.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{command} failed: {errors.read()[-2000:]}")
        return Run(seconds, most, output.read())


def into_page_cache(files: list[Path]) -> None:
    """Read files, so that whoever reads them next does not wait for the disk."""
    for path in files:
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def _anonymous(pid: int) -> int:
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            memory = process.memory_info()
            total += memory.rss - memory.shared
    except psutil.Error:
        return total
    return total
