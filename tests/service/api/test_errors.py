"""What is not answered as asked: each refusal with its status, code and form; and what every answer carries."""

import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from glue.records.database import Database
from glue.records.keys import create_key, revoke_key
from glue.records.workers import register_worker
from tests.support.service_api import WORKER, job_request, served, write_zoo

FIELDS = {"type", "title", "status", "detail", "instance", "code", "errors", "request_id"}
NO_JSON = (
    b"",
    b"{",
    b"\xff",
    b"[" * 100_000,
    b"{" + b'"a":{' * 50_000,
    b'{"a": NaN}',
    b'{"a": 1e999}',
    b'"\\ud800"',
    b'"\\u0000"',
    b'{"\\u0000": 1}',
    b"1" * 5000,
)
NO_YAML = (
    "a: [",
    "a: !!python/object/apply:os.system [ls]",
    "a: !function x.y",
    "a: &x [1]\nb: *x",
    "a: 2024-01-01",
    "[" * 2000,
    "a: .nan",
    '"\\0"',
    "? [1]\n: 2",
    "{1: a, b: c}",
)


def assert_problem(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == FIELDS
    assert (problem["status"], problem["code"], problem["type"]) == (status, code, f"urn:model-glue:problem:{code}")
    assert problem["request_id"] == answer.headers["X-Request-Id"]


class TestKeys:
    def test_no_valid_key_is_401(self, anonymous: TestClient) -> None:
        for value in (None, "", "Bearer", "Bearer x", "Basic eDp5", "Bearer mgl_" + "0" * 43, "Bearer é"):
            answer = anonymous.get("/v1/jobs", headers={} if value is None else {"Authorization": value.encode()})
            assert_problem(answer, 401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"

    def test_a_revoked_key_is_useless(self, anonymous: TestClient, database: Database) -> None:
        with database.transaction() as session:
            key, secret = create_key(session, "ann", "test")
        headers = {"Authorization": f"Bearer {secret}"}
        assert anonymous.get("/v1/jobs", headers=headers).status_code == 200
        with database.transaction() as session:
            revoke_key(session, "ann", key.id)
        assert_problem(anonymous.get("/v1/jobs", headers=headers), 401, "unauthorized")

    def test_the_key_is_asked_for_before_anything_else(self, anonymous: TestClient) -> None:
        assert_problem(anonymous.post("/v1/jobs", content="{", headers={"Content-Type": "x"}), 401, "unauthorized")


class TestRequests:
    def test_unknown_paths_and_methods(self, client: TestClient) -> None:
        assert_problem(client.get("/v1/nothing"), 404, "not_found")
        answer = client.put("/v1/jobs")
        assert_problem(answer, 405, "method_not_allowed")
        assert answer.headers["Allow"] == "GET, POST"
        assert client.patch("/v1/zoos/x").headers["Allow"] == "DELETE, GET"

    def test_other_media_types_are_415(self, client: TestClient) -> None:
        for media_type in (None, "text/plain", "application/x-www-form-urlencoded", "application/xml"):
            headers = {"Content-Type": media_type} if media_type else {}
            assert_problem(client.post("/v1/jobs", content=b"{}", headers=headers), 415, "unsupported_media_type")

    def test_compressed_bodies_are_415(self, client: TestClient) -> None:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        assert_problem(client.post("/v1/jobs", content=b"{}", headers=headers), 415, "unsupported_media_type")

    def test_a_charset_is_no_other_type(self, client: TestClient) -> None:
        headers = {"Content-Type": "Application/JSON; charset=utf-8"}
        assert_problem(client.post("/v1/jobs", content=b"{}", headers=headers), 422, "invalid_input")

    def test_large_bodies_are_413_whole_or_in_pieces(self, http: httpx.Client) -> None:
        body = b'"' + b"x" * (512 * 1024) + b'"'
        headers = {"Content-Type": "application/json"}
        assert_problem(http.post("/v1/jobs", content=body, headers=headers), 413, "too_large")
        pieces = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
        assert_problem(http.post("/v1/jobs", content=pieces, headers=headers), 413, "too_large")

    def test_the_largest_body_is_read(self, client: TestClient) -> None:
        body = b'"' + b"x" * (512 * 1024 - 2) + b'"'
        answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
        assert_problem(answer, 422, "invalid_input")

    def test_what_is_no_plain_json_is_400(self, client: TestClient) -> None:
        for body in NO_JSON:
            answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
            assert_problem(answer, 400, "unreadable_body")

    def test_a_backslash_before_u0000_is_no_nul(self, client: TestClient) -> None:
        answer = client.post("/v1/jobs", content=b'"\\\\u0000"', headers={"Content-Type": "application/json"})
        assert_problem(answer, 422, "invalid_input")

    def test_what_is_no_plain_yaml_is_400(self, client: TestClient) -> None:
        for body in NO_YAML:
            answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/yaml"})
            assert_problem(answer, 400, "unreadable_body")

    def test_strange_ids_are_not_found(self, client: TestClient) -> None:
        for name in ("x", "job_1", "job_" + "0" * 26, "%00", "job_" + "A" * 25 + "%00", "zoo_" + "0" * 26):
            assert_problem(client.get(f"/v1/jobs/{name}"), 404, "not_found")


class TestEveryAnswer:
    def test_request_ids_are_echoed(self, client: TestClient) -> None:
        assert client.get("/v1/jobs", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
        for strange in (None, "", "a b", "x" * 200, "<script>"):
            headers = {} if strange is None else {"X-Request-Id": strange}
            assert client.get("/v1/nothing", headers=headers).headers["X-Request-Id"].startswith("req_")

    def test_nothing_is_cached_sniffed_or_embedded(self, client: TestClient) -> None:
        headers = client.get("/v1/jobs").headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]

    def test_a_fault_of_ours_tells_nothing(
        self,
        app: FastAPI,
        client: TestClient,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def broken(*arguments: object) -> None:
            raise ZeroDivisionError("secret detail")

        client.post("/v1/zoos", json=write_zoo(root))
        monkeypatch.setattr("api.routes.jobs.resolve_job", broken)
        answer = client.post("/v1/jobs", json=job_request(root))
        assert_problem(answer, 500, "internal")
        assert "secret" not in answer.text
        assert answer.headers["X-Request-Id"] in caplog.text
        assert "secret detail" in caplog.text


class TestOperation:
    def test_health_needs_nothing(self, settings: Settings) -> None:
        lost = settings.model_copy(update={"database_url": "postgresql://x@127.0.0.1:1/x"})
        with TestClient(create_app(lost)) as client:
            assert client.get("/healthz").json() == {"status": "ok"}
            assert client.get("/readyz").status_code == 503
            assert client.get("/readyz").json()["checks"]["postgres"] == "down"

    def test_a_lost_database_is_503_and_worth_another_try(
        self, settings: Settings, key_of: Callable[[str], str]
    ) -> None:
        lost = settings.model_copy(update={"database_url": "postgresql://x@127.0.0.1:1/x"})
        with TestClient(create_app(lost), headers={"Authorization": f"Bearer {key_of('ann')}"}) as client:
            answer = client.get("/v1/jobs")
        assert_problem(answer, 503, "unavailable")
        assert answer.headers["Retry-After"] == "1"

    def test_ready(self, anonymous: TestClient) -> None:
        answer = anonymous.get("/readyz")
        assert answer.status_code == 200
        checks = {"postgres": "ok", "schema": "ok", "redis": "not configured"}
        assert answer.json() == {"status": "ready", "checks": checks}

    def test_redis_only_degrades(self, settings: Settings, redis_url: str) -> None:
        for url, status, check in ((redis_url, "ready", "ok"), ("redis://127.0.0.1:1/0", "degraded", "down")):
            with TestClient(create_app(settings.model_copy(update={"redis_url": url}))) as client:
                answer = client.get("/readyz")
            assert (answer.status_code, answer.json()["status"], answer.json()["checks"]["redis"]) == (
                200,
                status,
                check,
            )

    def test_an_empty_database_is_not_ready(self, settings: Settings, postgres_url: str) -> None:
        with TestClient(create_app(settings.model_copy(update={"database_url": postgres_url}))) as client:
            answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"]["schema"] == "not at this release"

    def test_settings_come_from_the_environment(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", settings.database_url)
        monkeypatch.setenv("GLUE_HOME", str(settings.home))
        monkeypatch.setenv("GLUE_ROOTS", os.pathsep.join(["/a", "/b"]))
        assert Settings().roots == (Path("/a"), Path("/b"))  # type: ignore[call-arg]
        with served(create_app()) as url:
            assert httpx.get(f"{url}/readyz").json()["status"] == "ready"


def test_workers_are_listed(client: TestClient, database: Database) -> None:
    with database.transaction() as session:
        register_worker(session, WORKER)
    (worker,) = client.get("/v1/workers").json()["data"]
    assert (worker["id"], worker["classes"], worker["busy"]) == ("wrk_test", ["cpu", "gpu", "hub"], False)
