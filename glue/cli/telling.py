"""What goes wrong in a command, told in words on the terminal with exit code 1."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

import typer
from rich.console import Console
from rich.markup import escape

from glue.cli.client import ServiceError
from glue.specs.errors import GlueError

Parameters = ParamSpec("Parameters")

console = Console()
errors = Console(stderr=True)


@contextmanager
def told() -> Iterator[None]:
    """What goes wrong inside is told in words, every problem with its fix."""
    try:
        yield
    except ServiceError as error:
        errors.print(f"[red]error:[/] {escape(error.lines[0])}", highlight=False)
        for line in error.lines[1:]:
            errors.print(line, highlight=False, markup=False)
        raise typer.Exit(1) from None
    except GlueError as error:
        errors.print(f"[red]error:[/] {escape(error.detail)}", highlight=False)
        for problem in error.problems:
            fix = f" ({problem.fix})" if problem.fix else ""
            errors.print(f"  {problem.pointer or '/'}: {problem.detail}{fix}", highlight=False, markup=False)
        raise typer.Exit(1) from None


def telling(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """The same command, whose errors are told in words."""

    @wraps(command)
    def run(*arguments: Parameters.args, **options: Parameters.kwargs) -> None:
        with told():
            command(*arguments, **options)

    return run
