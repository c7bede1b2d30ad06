"""The converter of pickles as a process of its own, started and listened to. Never torch."""

import subprocess
import sys
from pathlib import Path

from glue.specs.errors import DiskFullError, GlueError, InvalidInputError, Problem

# The converter's exit codes: what it was given is wrong, and it found no space. 1 would be Python's own.
REFUSED, DISK_FULL = 4, 3


def convert_in_a_process(source: Path, out: Path) -> None:
    """Write the pickled model in `source` as safetensors into `out`; see `glue.checkpoints.convert`.

    Raises:
        InvalidInputError: it cannot be converted, in the converter's last words.
        DiskFullError: there is no space.
        GlueError: the converter died.
    """
    command = [sys.executable, "-m", "glue.checkpoints.convert", str(source.resolve()), str(out.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    last = done.stderr.strip().splitlines()[-1:] or [f"the converter ended with code {done.returncode}"]
    detail = f"{source.name} could not be converted: {last[0]}"
    if done.returncode == DISK_FULL:
        raise DiskFullError(detail)
    if done.returncode != REFUSED:
        raise GlueError(detail)
    fix = "load the model where you trust it and save_pretrained() it as safetensors"
    raise InvalidInputError(f"{detail}; {fix}", [Problem("", "pickle", detail, fix)])
