"""A database, a broker and processes of its own for every test of the workers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from glue.records.database import Database
from tests.support.database import migrated_template, temporary_database
from tests.support.service import Jobs, Processes, processes
from workers.embedded.valkey import ValkeyServer


@pytest.fixture(scope="session")
def template(postgres_url: str) -> Iterator[str]:
    with migrated_template(postgres_url) as name:
        yield name


@pytest.fixture
def database_url(postgres_url: str, template: str) -> Iterator[str]:
    with temporary_database(postgres_url, template) as url:
        yield url


@pytest.fixture
def jobs(database_url: str) -> Iterator[Jobs]:
    database = Database(database_url)
    yield Jobs(database)
    database.dispose()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path / "broker")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def alone(tmp_path: Path, database_url: str) -> Iterator[Processes]:
    """Processes without a broker."""
    with processes(tmp_path, database_url) as started:
        yield started


@pytest.fixture
def with_broker(tmp_path: Path, database_url: str, broker: ValkeyServer) -> Iterator[Processes]:
    """Processes with a broker."""
    with processes(tmp_path, database_url, broker.url) as started:
        yield started
