"""What a unit's run may touch besides its request: folders, a device, progress, and what the engine keeps warm."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from glue.references.hub_access import HubAccess

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Context:
    """The rim of a unit's run.

    `artifacts` is the root of finished folders, `work` the folder for this unit's partial work: its name is
    the digest of the unit's inputs, so a second attempt finds what the first one left. `progress` takes a
    fraction from 0 to 1 and a message. `cache` lives as long as the engine process. `hub` is there for units of the
    class hub alone.
    """

    artifacts: Path
    work: Path
    device: str
    progress: Callable[[float, str], None]
    cache: dict[Hashable, Any] = field(default_factory=dict)
    hub: HubAccess | None = None

    def hub_access(self) -> HubAccess:
        """The way to the Hub.

        Raises:
            AssertionError: the unit is not of the class hub.
        """
        assert self.hub is not None
        return self.hub

    def keep(self, kind: str, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """The value of that kind and key, made once; another key of the same kind replaces it.

        One value per kind is kept, so memory does not grow with the number of units.
        """
        held = self.cache.get(kind)
        if held is None or held[0] != key:
            self.cache.pop(kind, None)
            held = (key, make())
            self.cache[kind] = held
        value: Kept = held[1]
        return value
