"""A job whose workers share no disk: finished folders travel through object storage, and to the client from there."""

import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from examples.smoke_job import build_zoo, run, temporary_key
from glue.specs.plan import WorkerClass
from tests.support.object_storage import ObjectStorage, object_storage
from tests.support.service import processes
from workers.embedded.process import wait_for
from workers.settings import REGISTRY_RUNNER


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStorage]:
    with object_storage() as running:
        yield running


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.HTTPError:
        return False


def test_workers_without_a_shared_disk_end_in_a_model_that_can_be_pulled(
    server: ObjectStorage, database_url: str, tmp_path: Path
) -> None:
    root, port = tmp_path / "models" / "zoo", free_port()
    build_zoo(root)
    settings = {
        **server.environment,
        "GLUE_ARTIFACTS_URL": server.bucket("glue-artifacts"),
        "GLUE_ROOTS": str(root.parent),
        "GLUE_ENGINE_RUNNER": REGISTRY_RUNNER,
        "GLUE_LEASE_SECONDS": "10",
        "HF_HUB_OFFLINE": "1",
    }
    with processes(tmp_path / "home", database_url, **settings) as started:
        started.maintenance()
        started.slot("cpu", [WorkerClass.CPU], GLUE_HOME=str(tmp_path / "first"))
        started.slot("gpu", [WorkerClass.GPU], GLUE_HOME=str(tmp_path / "second"))
        url = f"http://127.0.0.1:{port}"
        started.start("api", [sys.executable, "-m", "uvicorn", "api.app:app", "--port", str(port)])
        assert wait_for(lambda: answers(url), 60), started.log("api")
        with temporary_key(database_url) as key:
            job = run(url, root, key, 200)
            assert job["status"] == "succeeded", (job, started.log("cpu"), started.log("gpu"))
            for machine in ("first", "second"):
                shutil.rmtree(tmp_path / machine)
            check_files(url, key, job)


def check_files(url: str, key: str, job: dict[str, object]) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as client:
        result = job["result"]
        assert isinstance(result, dict)
        artifact = client.get(f"/v1/artifacts/{result['artifact_id']}").json()
        for entry in artifact["manifest"]["files"]:
            path = f"/v1/artifacts/{artifact['id']}/files/{entry['path']}"
            whole = client.get(path)
            assert len(whole.content) == entry["size"]
            assert whole.headers["ETag"] == f'"{entry["sha256"]}"'
            check_ranges(client, path, whole.content)
        assert client.get(f"/v1/jobs/{job['id']}/report").json()["artifact"]


def check_ranges(client: httpx.Client, path: str, whole: bytes) -> None:
    part = client.get(path, headers={"Range": "bytes=1-9"})
    assert (part.status_code, part.content) == (206, whole[1:10])
    assert part.headers["Content-Range"] == f"bytes 1-{min(9, len(whole) - 1)}/{len(whole)}"
    assert client.get(path, headers={"Range": "bytes=-5"}).content == whole[-5:]
    assert client.get(path, headers={"Range": f"bytes={len(whole)}-"}).status_code == 416
    assert client.get(path, headers={"Range": "bytes=1-9", "If-Range": '"other"'}).content == whole
