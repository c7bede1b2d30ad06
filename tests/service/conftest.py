"""Fixtures of tests that need the database: a fresh, migrated one for each test."""

from collections.abc import Iterator

import pytest

from glue.records.database import Database
from tests.support.database import migrated_template, temporary_database


@pytest.fixture(scope="session")
def database_template(postgres_url: str) -> Iterator[str]:
    """The name of a migrated database."""
    with migrated_template(postgres_url) as template:
        yield template


@pytest.fixture
def database_url(postgres_url: str, database_template: str) -> Iterator[str]:
    """The address of a migrated database that belongs to this test."""
    with temporary_database(postgres_url, database_template) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database that belongs to this test."""
    database = Database(database_url)
    yield database
    database.dispose()
