"""`glue stack`: a deeper model made here and now, without the service. Torch is imported only to run it."""

from pathlib import Path
from typing import Annotated

import typer

from glue.cli.merge import Verification, bar, bytes_of
from glue.cli.telling import console, errors, told


def stack(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yml", help="A stack file: a method and its models.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make; it must not exist.")],
    shard_size: Annotated[str, typer.Option(help="The largest size of a file of weights.")] = "4GB",
    verify: Annotated[
        Verification, typer.Option(help="`load` also loads the result with transformers and runs it once.")
    ] = Verification.STREAM,
) -> None:
    """Put layers of models on top of each other as CONFIG.yml says, into the folder OUT. After a kill, it goes on."""
    from glue.stacking.modelling import run_stack_once
    from glue.stacking.run import stack_file

    with told():
        check = run_stack_once if verify is Verification.LOAD else None
        with bar("stacking") as progress:
            notes = stack_file(config, out, shard_bytes=bytes_of(shard_size), progress=progress, check=check)
        for note in notes:
            errors.print(f"[yellow]note:[/] {note}", highlight=False)
    console.print(f"stacked into {out}", highlight=False)
