"""`glue mix`: a file of mergekit-moe's run here and now, without the service. Torch is imported only to run it."""

from pathlib import Path
from typing import Annotated

import typer

from glue.cli.merge import bar, bytes_of
from glue.cli.telling import console, errors, told


def mix(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yml", help="A mixture file as mergekit-moe reads it.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make; it must not exist.")],
    shard_size: Annotated[str, typer.Option(help="The largest size of a file of weights.")] = "4GB",
    seed: Annotated[int | None, typer.Option(help="The seed of random routers where the file sets none.")] = None,
    device: Annotated[str, typer.Option(help="Where routers learn from text: cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Put models behind a router as CONFIG.yml says, into the folder OUT. Started again after a kill, it goes on."""
    from transformers.utils import logging

    from glue.mixture.run import mix_file

    logging.disable_progress_bar()
    with told():
        with bar("mixing") as progress:
            notes = mix_file(config, out, shard_bytes=bytes_of(shard_size), seed=seed, progress=progress, device=device)
        for note in notes:
            errors.print(f"[yellow]note:[/] {note}", highlight=False)
    console.print(f"mixed into {out}", highlight=False)
