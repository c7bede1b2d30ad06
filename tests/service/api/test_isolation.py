"""Every route needs a key and shows nothing of another owner. The routes are asked for, so none is forgotten."""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import api.routes
from glue.records.database import Database
from tests.support.service_api import (
    finish_job,
    job_request,
    job_spec,
    report_files,
    short_job,
    write_artifact,
    write_zoo,
)

OPEN = {"/healthz", "/readyz"}
# Not about anybody's records.
SHARED = {"/v1/workers"}


def api_routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and path of every route of the API, in the order of the document."""
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            yield method.upper(), path


@pytest.fixture
def records(client: TestClient, database: Database, root: Path, tmp_path: Path) -> dict[str, str]:
    """Ann's records: what stands for each parameter of a path."""
    zoo = client.post("/v1/zoos", json=write_zoo(root)).json()
    job_id = short_job(database, "ann", job_spec(root))
    finish_job(database, write_artifact(tmp_path / "home" / "artifacts", report_files({"object": "report"})))
    artifact_id = client.get(f"/v1/jobs/{job_id}").json()["result"]["artifact_id"]
    unit_id = client.get(f"/v1/jobs/{job_id}/units").json()["data"][0]["id"]
    ids = {"job_id": job_id, "unit_id": unit_id, "artifact_id": artifact_id}
    return {"zoo": zoo["id"], "path": "report.json"} | ids


def test_the_document_knows_every_route(app: FastAPI) -> None:
    modules = [import_module(f"api.routes.{module.name}") for module in iter_modules(api.routes.__path__)]
    paths = {route.path.replace(":path}", "}") for module in modules for route in module.router.routes}
    assert {path for _, path in api_routes(app)} == paths


def test_every_route_but_health_needs_a_key(app: FastAPI, anonymous: TestClient, records: dict[str, str]) -> None:
    found = list(api_routes(app))
    assert len(found) >= 15
    for method, path in found:
        if path not in OPEN:
            answer = anonymous.request(method, path.format(**records))
            assert answer.status_code == 401, (method, path)


def test_no_route_shows_a_strangers_record(
    app: FastAPI, client: TestClient, stranger: TestClient, records: dict[str, str]
) -> None:
    for method, path in api_routes(app):
        if "{" not in path:
            continue
        answer = stranger.request(method, path.format(**records))
        assert answer.status_code == 404, (method, path)
        nothing = stranger.request(method, path.format(**dict.fromkeys(records, "x")))
        assert nothing.status_code == 404
        assert set(answer.json()) == set(nothing.json())
    for path in ("/v1/zoos", "/v1/jobs"):
        assert stranger.get(path).json()["data"] == []
    assert stranger.get("/v1/artifacts", params={"job": records["job_id"]}).status_code == 404
    assert (
        stranger.get(f"/v1/jobs/{records['job_id']}/events", headers={"Accept": "text/event-stream"}).status_code == 404
    )
    assert client.get(f"/v1/zoos/{records['zoo']}").status_code == 200


def test_every_list_was_looked_at(app: FastAPI) -> None:
    lists = {path for method, path in api_routes(app) if method == "GET" and "{" not in path}
    # An owner has one token, so its path names no record; another owner's is never answered.
    assert lists == {"/v1/zoos", "/v1/jobs", "/v1/artifacts", "/v1/hub-token"} | OPEN | SHARED


def test_a_strangers_zoo_is_not_used(stranger: TestClient, client: TestClient, root: Path) -> None:
    client.post("/v1/zoos", json=write_zoo(root))
    answer = stranger.post("/v1/jobs", json=job_request(root))
    assert answer.json()["errors"][0]["code"] == "unknown_zoo"


def test_the_same_name_is_another_zoo(
    client: TestClient, stranger: TestClient, root: Path, key_of: Callable[[str], str]
) -> None:
    request = write_zoo(root)
    ids = {each.post("/v1/zoos", json=request).json()["id"] for each in (client, stranger)}
    assert len(ids) == 2
    assert stranger.delete("/v1/zoos/small").status_code == 204
    assert client.get("/v1/zoos/small").status_code == 200
