"""Licences at submission: what cannot be combined is refused where it would be published, and told otherwise."""

import base64
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.settings import Settings
from tests.support.hub.server import OWNER, TOKEN, StandIn
from tests.support.service_api import job_request, write_zoo

MASTER = base64.b64encode(b"m" * 32).decode()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"secret_keys": MASTER})


def zoo_with(root: Path, **licences: str) -> dict[str, Any]:
    request = write_zoo(root)
    for name, licence in licences.items():
        (root / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    return request


def test_a_conflict_is_refused_where_it_would_be_published(standing: StandIn, client: TestClient, root: Path) -> None:
    client.put("/v1/hub-token", json={"token": TOKEN})
    assert client.post("/v1/zoos", json=zoo_with(root, a="llama2", b="llama3")).status_code == 201
    target = {"repo": f"{OWNER}/new"}
    refused = client.post("/v1/jobs", json=job_request(root, publish=target))
    assert refused.status_code == 422
    assert [(error["pointer"], error["code"]) for error in refused.json()["errors"]] == [
        ("/publish/licence", "licences_conflict")
    ]
    chosen = client.post("/v1/jobs", json=job_request(root, publish=target | {"licence": "cc-by-nc-4.0"}))
    assert chosen.status_code == 201
    unpublished = client.post("/v1/jobs", json=job_request(root))
    assert unpublished.status_code == 201
    assert "llama2, llama3" in unpublished.json()["warnings"][0]


def test_what_is_unknown_is_told(client: TestClient, root: Path) -> None:
    client.post("/v1/zoos", json=zoo_with(root, a="mit"))
    assert client.post("/v1/jobs", json=job_request(root)).json()["warnings"] == ["no licence is known of b"]


def test_an_artifact_that_is_not_there_is_not_published(client: TestClient) -> None:
    request = {"kind": "publish", "artifact": f"art_{'0' * 26}", "publish": {"repo": "ann/x"}}
    answer = client.post("/v1/jobs", json=request)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["code"] == "unknown_artifact"
