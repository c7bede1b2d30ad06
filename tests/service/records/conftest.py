"""A database that is watched: after every test all invariants of the records hold, unless it says otherwise."""

from collections.abc import Iterator

import pytest

from glue.records.database import Database
from tests.support.database import temporary_database
from tests.support.invariants import clear, violations, watch


@pytest.fixture(scope="session")
def watched_url(postgres_url: str, database_template: str) -> Iterator[str]:
    """One database for all of these tests: emptying it is faster than making another."""
    with temporary_database(postgres_url, database_template) as url:
        yield url


@pytest.fixture(scope="session")
def watched_database(watched_url: str) -> Iterator[Database]:
    """The same, opened and watched."""
    database = Database(watched_url)
    with database.transaction() as session:
        watch(session)
    yield database
    database.dispose()


@pytest.fixture
def watched(watched_database: Database) -> Iterator[Database]:
    """An empty database whose invariants are checked when the test is over."""
    clear(watched_database)
    yield watched_database
    with watched_database.transaction() as session:
        assert violations(session) == {}
