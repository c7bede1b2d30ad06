"""The Hub's stand-in, for whatever looks into repositories."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub.pushing import go_online
from tests.support.hub.server import StandIn, hub


@pytest.fixture
def standing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in, which nobody waits for before asking again."""
    go_online(monkeypatch)
    monkeypatch.setattr("glue.references.hub_access.sleep", lambda seconds: None)
    with hub(tmp_path / "hub") as running:
        yield running
