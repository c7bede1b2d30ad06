"""`glue up`: hands over to the supervisor, whose code the command line does not know."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def up(
    home: Annotated[
        Path | None, typer.Option(help="Where everything is kept.", show_default="$GLUE_HOME or ~/.glue")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the API.", show_default="the first free one from 8321 on")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="How many units may run at once.")] = 1,
    root: Annotated[
        list[Path] | None,
        typer.Option(help="A folder that jobs may read; may be repeated.", show_default="$GLUE_ROOTS or this folder"),
    ] = None,
) -> None:
    """Run the whole service on this machine until Ctrl-C: database, broker, API and workers.

    DATABASE_URL and REDIS_URL, when set, replace the embedded Postgres and Valkey.
    """
    arguments = ["--workers", str(workers)]
    arguments += ["--home", str(home)] if home else []
    arguments += ["--port", str(port)] if port is not None else []
    arguments += [part for folder in root or () for part in ("--root", str(folder))]
    # -P: the folder that this is called in may hold one named `workers`.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "workers.supervisor", *arguments])  # noqa: S606  # no shell
