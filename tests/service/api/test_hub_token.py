"""The owner's token for the Hub over HTTP: in, and never out again."""

import base64
import logging
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from api.app import create_app
from api.settings import Settings
from glue.records.database import Database
from glue.records.hub_tokens import open_token
from glue.records.sealing import Vault
from glue.records.tables import HubToken
from tests.support.hub.pushing import go_online
from tests.support.hub.server import EXPIRED_TOKEN, OWNER, STRANGER, STRANGER_TOKEN, TOKEN, StandIn

MASTER = base64.b64encode(b"m" * 32).decode()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"secret_keys": MASTER})


def test_a_token_goes_in_and_never_comes_out(
    standing: StandIn, client: TestClient, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = client.put("/v1/hub-token", json={"token": TOKEN})
    assert answer.status_code == 200
    assert (answer.json()["account"], answer.json()["role"]) == (OWNER, "write")
    for text in (answer.text, client.get("/v1/hub-token").text, caplog.text):
        assert TOKEN not in text
    with database.transaction() as session:
        sealed = session.scalars(select(HubToken.sealed)).one()
        assert TOKEN.encode() not in sealed
        assert open_token(session, Vault.from_text(MASTER), "ann") == TOKEN
        assert open_token(session, Vault.from_text(MASTER), "bob") is None


def test_a_new_token_takes_the_place_of_the_old_one(standing: StandIn, client: TestClient) -> None:
    client.put("/v1/hub-token", json={"token": TOKEN})
    assert client.put("/v1/hub-token", json={"token": STRANGER_TOKEN}).json()["account"] == STRANGER
    assert client.get("/v1/hub-token").json()["account"] == STRANGER
    assert client.delete("/v1/hub-token").status_code == 204
    assert client.delete("/v1/hub-token").status_code == 204
    assert client.get("/v1/hub-token").status_code == 404


def test_one_owner_does_not_see_anothers(standing: StandIn, client: TestClient, stranger: TestClient) -> None:
    client.put("/v1/hub-token", json={"token": TOKEN})
    assert stranger.get("/v1/hub-token").status_code == 404
    stranger.delete("/v1/hub-token")
    assert client.get("/v1/hub-token").status_code == 200


def test_a_token_that_the_hub_refuses_is_not_kept(standing: StandIn, client: TestClient) -> None:
    answer = client.put("/v1/hub-token", json={"token": EXPIRED_TOKEN})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["code"] == "token_refused"
    assert EXPIRED_TOKEN not in answer.text
    assert client.get("/v1/hub-token").status_code == 404


@pytest.mark.parametrize("body", [{"token": "hf with space"}, {"token": ""}, {"tocken": "hf_secret"}, "hf_secret", []])
def test_a_wrong_body_is_not_quoted(body: object, client: TestClient) -> None:
    answer = client.put("/v1/hub-token", json=body)
    assert answer.status_code == 422
    assert "hf_secret" not in answer.text
    assert "hf with" not in answer.text


def test_a_hub_that_is_away_is_no_mistake_of_the_caller(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    go_online(monkeypatch)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("glue.references.hub_access.sleep", lambda seconds: None)
    answer = client.put("/v1/hub-token", json={"token": TOKEN})
    assert (answer.status_code, answer.json()["code"]) == (503, "hub_unavailable")
    assert answer.headers["Retry-After"]


def test_without_a_master_key_nothing_is_kept(
    standing: StandIn, settings: Settings, key_of: Callable[[str], str]
) -> None:
    app = create_app(settings.model_copy(update={"secret_keys": ""}))
    with TestClient(app, headers={"Authorization": f"Bearer {key_of('ann')}"}) as client:
        answer = client.put("/v1/hub-token", json={"token": TOKEN})
    assert (answer.status_code, answer.json()["code"]) == (409, "no_secret_key")
