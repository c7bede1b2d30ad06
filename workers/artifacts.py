"""A worker's finished folders to and from object storage. Only the worker has its keys; the engine sees folders."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from glue.artifacts.storage import ArtifactStorage
from glue.specs.plan import ADVANCE, UnitOutcome, UnitRequest
from workers.engine.process import Interruption, UnitInterruptedError

Interrupt = Callable[[], Interruption | None]


class Artifacts:
    """The folder of finished folders on this machine, and the object storage behind it if there is a `url`."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._storage = ArtifactStorage(url) if url else None

    def bring(self, unit: UnitRequest, interruption: Interrupt) -> None:
        """Have every folder on disk that the unit's inputs name. An advance reads results only.

        Raises:
            UnitInterruptedError: the unit must stop.
            StorageError: a folder is not stored, or damaged.
        """
        if self._storage is None or unit.kind == ADVANCE:
            return
        inputs = [unit.payload, [outcome.result for outcome in unit.outcomes]]
        for location in sorted(set(_locations(inputs))):
            self._storage.fetch(self._folder, location, stopping(interruption))
            # Copies go that nobody used for long.
            os.utime(self._folder / location)

    def send(self, outcome: UnitOutcome, interruption: Interrupt) -> None:
        """Store the folder that the unit made, before anybody is told of it.

        Raises:
            UnitInterruptedError: the unit must stop.
        """
        if self._storage is not None and outcome.artifact is not None:
            self._storage.store(self._folder, outcome.artifact.location, stopping(interruption))


def stopping(interruption: Interrupt) -> Callable[[], None]:
    """A check between the blocks of a transfer: it ends it when the unit must stop."""

    def check() -> None:
        reason = interruption()
        if reason is not None:
            raise UnitInterruptedError(reason)

    return check


def _locations(value: Any) -> Iterator[str]:
    """Every text under a key `location`, however deep."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "location" and isinstance(inner, str) and inner:
                yield inner
            else:
                yield from _locations(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _locations(inner)
