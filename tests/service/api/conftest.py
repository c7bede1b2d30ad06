"""Fixtures of the API's tests: the app on a database of the test's own, with clients of two owners."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from glue.records.database import Database
from glue.records.keys import create_key
from tests.support.hub.pushing import go_online
from tests.support.hub.server import StandIn, hub
from tests.support.service_api import served


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The only folder below which models and tasks may lie."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def standing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A Hub on loopback that the API talks to."""
    go_online(monkeypatch)
    with hub(tmp_path / "hub") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture
def settings(database_url: str, tmp_path: Path, root: Path) -> Settings:
    """Settings with times short enough for a test."""
    return Settings(
        database_url=database_url,
        redis_url="",
        GLUE_HOME=tmp_path / "home",
        GLUE_ROOTS=str(root),
        GLUE_EVENT_POLL_SECONDS=0.02,
        GLUE_EVENT_PING_SECONDS=0.2,
        GLUE_EVENT_STREAM_SECONDS=20,
    )


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def anonymous(app: FastAPI) -> Iterator[TestClient]:
    """A client without a key."""
    with TestClient(app) as client:
        yield client


@pytest.fixture
def key_of(database: Database) -> Callable[[str], str]:
    """Makes a key for an owner; gives its secret."""

    def make(owner: str) -> str:
        with database.transaction() as session:
            return create_key(session, owner, "test")[1]

    return make


@pytest.fixture
def client(app: FastAPI, anonymous: TestClient, key_of: Callable[[str], str]) -> TestClient:
    """A client of the owner `ann`."""
    return TestClient(app, headers={"Authorization": f"Bearer {key_of('ann')}"})


@pytest.fixture
def stranger(app: FastAPI, anonymous: TestClient, key_of: Callable[[str], str]) -> TestClient:
    """A client of the owner `bob`."""
    return TestClient(app, headers={"Authorization": f"Bearer {key_of('bob')}"})


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    """A real server's address."""
    with served(app) as address:
        yield address


@pytest.fixture
def http(url: str, key_of: Callable[[str], str]) -> Iterator[httpx.Client]:
    """A client of the owner `ann` on the real server."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key_of('ann')}"}, timeout=30) as client:
        yield client
