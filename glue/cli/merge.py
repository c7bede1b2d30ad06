"""`glue merge`: a merge file of mergekit's run here and now, without the service. Torch is imported only to run it."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from glue.cli.imports import quickly
from glue.cli.telling import console, errors, told

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(k|m|g)?b?$", re.IGNORECASE)
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
SMALLEST_SHARD = 1_000_000


class Verification(StrEnum):
    """What is checked of a result besides its layout and that every value is finite."""

    STREAM = "stream"
    LOAD = "load"


def merge(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yml", help="A merge file as mergekit reads it.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make; it must not exist.")],
    shard_size: Annotated[str, typer.Option(help="The largest size of a file of weights.")] = "4GB",
    seed: Annotated[int | None, typer.Option(help="The seed of random methods where the file sets none.")] = None,
    verify: Annotated[
        Verification, typer.Option(help="`load` also loads the result with transformers and runs it once.")
    ] = Verification.STREAM,
) -> None:
    """Merge models as CONFIG.yml says into the folder OUT. Started again after a kill, it goes on where it was."""
    with quickly("torch"):
        from glue.merging.run import merge_file, notes_on

    with told():
        for note in notes_on(config):
            errors.print(f"[yellow]note:[/] {note}", highlight=False)
        check = _trial() if verify is Verification.LOAD else None
        with bar("merging") as progress:
            merge_file(config, out, shard_bytes=bytes_of(shard_size), seed=seed, progress=progress, check=check)
    console.print(f"merged into {out}", highlight=False)


def _trial() -> Callable[[Path], None]:
    from glue.merging.trial import run_once

    return run_once


def bytes_of(size: str) -> int:
    """The number of bytes in a size such as 4GB or 500MB.

    Raises:
        typer.BadParameter: it is no size, or below 1 MB.
    """
    found = _SIZE.match(size.strip())
    count = int(float(found[1]) * _FACTORS[(found[2] or "").lower()]) if found else 0
    if count < SMALLEST_SHARD:
        raise typer.BadParameter(f"{size} is not a size of at least 1MB, such as 4GB")
    return count


@contextmanager
def bar(label: str) -> Iterator[Callable[[float, str], None]]:
    """A progress bar on the error stream, gone when the work is done; hears a fraction and what is at hand."""
    columns = (
        TextColumn(label),
        BarColumn(bar_width=32),
        TaskProgressColumn(),
        TextColumn("[dim]{task.description}"),
    )
    with Progress(*columns, console=errors, transient=True) as bars:
        task = bars.add_task("", total=1.0)
        yield lambda fraction, message: bars.update(task, completed=fraction, description=message)
