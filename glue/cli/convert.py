"""`glue convert`: a checkpoint of pickles into safetensors, once. The pickles are opened in a process of their own."""

from pathlib import Path
from typing import Annotated

import typer

from glue.checkpoints.guarded import convert_in_a_process
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
        convert_in_a_process(source, out)
    console.print(f"converted into {out}", highlight=False)
