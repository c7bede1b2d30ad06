"""`glue convert`: a checkpoint of pickles into safetensors, once. The pickles are opened in a process of their own."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from glue.cli.telling import console, told
from glue.specs.errors import InvalidInputError


def convert(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="A model folder with pytorch_model*.bin.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make; it must not exist.")],
) -> None:
    """Convert a model's .bin files to safetensors in OUT. No code in them is run; what is not weights is refused."""
    with told():
        if out.exists():
            raise InvalidInputError(f"{out} exists already; remove it, or choose another folder")
        command = [sys.executable, "-m", "glue.checkpoints.convert", str(source.resolve()), str(out.resolve())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or [f"it ended with code {done.returncode}"]
            raise InvalidInputError(f"{source} could not be converted: {last[0]}")
    console.print(f"converted into {out}", highlight=False)
