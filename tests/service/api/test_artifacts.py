"""Artifacts over HTTP: exactly the files of the manifest, whole or in part."""

import hashlib
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from glue.records.database import Database
from tests.support.service_api import finish_job, job_spec, report_files, short_job, write_artifact

REPORT = {"object": "report", "recommended": "mixture"}


@pytest.fixture
def finished(database: Database, root: Path, tmp_path: Path) -> str:
    """The id of a succeeded job with an artifact; beside the artifact lies a file that it does not name."""
    job_id = short_job(database, "ann", job_spec(root))
    files = report_files(REPORT) | {"plots/models.png": b"\x89PNG", "page.html": b"<script>"}
    plan = write_artifact(tmp_path / "home" / "artifacts", files)
    (tmp_path / "home" / "artifacts" / plan.location / "stray").write_text("x")
    (tmp_path / "home" / "artifacts" / "secret").write_text("x")
    finish_job(database, plan)
    return job_id


@pytest.fixture
def artifact(client: TestClient, finished: str) -> dict[str, Any]:
    (found,) = client.get("/v1/artifacts", params={"job": finished}).json()["data"]
    assert client.get(f"/v1/artifacts/{found['id']}").json() == found
    answer: dict[str, Any] = found
    return answer


def test_the_manifest_tells_every_file(artifact: dict[str, Any], tmp_path: Path) -> None:
    assert [file["path"] for file in artifact["manifest"]["files"]] == [
        "model.safetensors",
        "page.html",
        "plots/models.png",
        "report.json",
    ]
    assert (tmp_path / "home" / "artifacts" / artifact["location"] / "report.json").is_file()
    assert artifact["size"] == sum(file["size"] for file in artifact["manifest"]["files"])


def test_every_file_is_what_the_manifest_says(client: TestClient, artifact: dict[str, Any]) -> None:
    for file in artifact["manifest"]["files"]:
        answer = client.get(f"/v1/artifacts/{artifact['id']}/files/{file['path']}")
        assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
        assert answer.headers["ETag"] == f'"{file["sha256"]}"'


def test_what_a_browser_would_run_is_only_bytes(client: TestClient, artifact: dict[str, Any]) -> None:
    answer = client.get(f"/v1/artifacts/{artifact['id']}/files/page.html")
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_parts_are_served(client: TestClient, artifact: dict[str, Any]) -> None:
    path = f"/v1/artifacts/{artifact['id']}/files/model.safetensors"
    whole = client.get(path).content
    part = client.get(path, headers={"Range": "bytes=100-199"})
    assert part.status_code == 206
    assert part.content == whole[100:200]
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(whole)}"
    assert client.get(path, headers={"Range": f"bytes={len(whole)}-"}).status_code == 416


STRANGE_PATHS = (
    "stray",
    "../../secret",
    "..%2F..%2Fsecret",
    "%2e%2e/%2e%2e/secret",
    "plots/../report.json",
    "/etc/passwd",
    "a%00b",
    "",
)


def test_nothing_else_is_served(url: str, client: TestClient, artifact: dict[str, Any]) -> None:
    # Over a bare connection: a client library would tidy the path up before it is sent.
    headers = {"Authorization": client.headers["Authorization"]}
    with closing(HTTPConnection(url.removeprefix("http://"))) as connection:
        for path in STRANGE_PATHS:
            connection.request("GET", f"/v1/artifacts/{artifact['id']}/files/{path}", headers=headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 404, path


def test_a_link_out_of_the_artifact_is_not_followed(
    client: TestClient, artifact: dict[str, Any], tmp_path: Path
) -> None:
    (file,) = (tmp_path / "home" / "artifacts").glob("*/*/page.html")
    file.unlink()
    file.symlink_to(tmp_path / "home" / "artifacts" / "secret")
    answer = client.get(f"/v1/artifacts/{artifact['id']}/files/page.html")
    assert (answer.status_code, answer.json()["code"]) == (404, "file_missing")


def test_the_report_is_the_artifacts(client: TestClient, finished: str) -> None:
    answer = client.get(f"/v1/jobs/{finished}/report")
    assert answer.json() == REPORT
    assert answer.headers["Content-Type"] == "application/json"


def test_a_job_that_has_not_succeeded_has_no_report(client: TestClient, database: Database, root: Path) -> None:
    answer = client.get(f"/v1/jobs/{short_job(database, 'ann', job_spec(root))}/report")
    assert (answer.status_code, answer.json()["code"]) == (404, "no_report")
    assert "queued" in answer.json()["detail"]
