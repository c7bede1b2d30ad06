"""Fixtures that every test may ask for: real servers, started once and only when asked for."""

from collections.abc import Iterator

import pytest

from workers.embedded.postgres import PostgresServer
from workers.embedded.valkey import ValkeyServer


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees what an earlier run has found out about architectures, nor leaves anything behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLUE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The admin address of a fresh Postgres; a test that writes creates a database of its own from it."""
    # No test cuts the power, so nothing needs to wait for the disk.
    server = PostgresServer(tmp_path_factory.mktemp("postgres"), settings={"fsync": "off"})
    server.start()
    yield server.admin_url
    server.stop()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a fresh Valkey; tests share it, so each uses keys of its own."""
    server = ValkeyServer(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server.url
    server.stop()
