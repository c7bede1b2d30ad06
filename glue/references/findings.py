"""Collects every mistake of a submission before one error is raised. Knows nothing of what is checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from glue.specs.errors import GlueError, IncompatibleModelsError, InvalidInputError, Problem


class Findings:
    """The problems found so far; `incompatible` tells whether all of them are about models as such."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._incompatible = True

    def add(self, error: GlueError, pointer: str, subject: str) -> None:
        """Keep the error's problems, pointing at `pointer` in the user's file; `subject` opens their details."""
        self._incompatible &= isinstance(error, IncompatibleModelsError)
        self.problems += [
            replace(problem, pointer=pointer + problem.pointer, detail=f"{subject}: {problem.detail}")
            for problem in error.problems
        ]

    @contextmanager
    def at(self, pointer: str, subject: str) -> Iterator[None]:
        """Keep the problems of an error that the block raises, and go on behind the block."""
        try:
            yield
        except (IncompatibleModelsError, InvalidInputError) as error:
            self.add(error, pointer, subject)

    def raise_any(self) -> None:
        """Raise what was found, if anything was.

        Raises:
            IncompatibleModelsError: every problem is about models that cannot be used (together).
            InvalidInputError: at least one is about the request itself.
        """
        if not self.problems:
            return
        kind = IncompatibleModelsError if self._incompatible else InvalidInputError
        first, more = self.problems[0], len(self.problems) - 1
        raise kind(f"{first.detail}; {first.fix}{f' (and {more} more)' if more else ''}", self.problems)
