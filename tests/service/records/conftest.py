"""A database that is watched: after every test all invariants of the records hold, unless it says otherwise."""

from collections.abc import Iterator

import pytest

from glue.records.database import Database
from tests.support.invariants import violations, watch


@pytest.fixture
def watched(database: Database) -> Iterator[Database]:
    """A database whose invariants are checked when the test is over."""
    with database.transaction() as session:
        watch(session)
    yield database
    with database.transaction() as session:
        assert violations(session) == {}
