"""Models of the Hub where workers share no disk: downloaded by one, fetched by the others, each within its budget."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.smoke_job import MEMBERS, build_zoo, job_request, temporary_key
from glue.references.hub_cache import COMPLETE, used_bytes
from glue.specs.errors import DiskFullError
from glue.specs.plan import UnitRequest, WorkerClass
from tests.support.deployed import can_isolate
from tests.support.hub.server import OWNER, StandIn, hub
from tests.support.object_storage import ObjectStorage, object_storage
from tests.support.sandbox_server import free_port
from tests.support.service import Processes, processes
from workers.app import worker_command
from workers.embedded.process import wait_for
from workers.hub_models import HubModels
from workers.settings import REGISTRY_RUNNER

COMMIT = "c" * 40


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStorage]:
    with object_storage() as running:
        yield running


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'bucket'}"


def never() -> None:
    """Nobody interrupts."""


def say(line: str) -> None:
    """Nobody listens."""


def model(cache: Path, name: str, size: int = 1000) -> Path:
    """A downloaded model."""
    folder = cache / "models" / f"ann--{name}" / COMMIT
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(size))
    (folder / COMPLETE).write_text("{}")
    return folder


def unit(kind: str, payload: dict[str, Any] | None = None, spec: dict[str, Any] | None = None) -> UnitRequest:
    return UnitRequest("unit_1", "job_1", "resolve", "", kind, 0, 0, 1, "digest", spec or {}, payload or {})


def download(name: str) -> UnitRequest:
    return unit("resolve.download", {"name": name, "repo": f"ann/{name}", "commit": COMMIT})


def reads(cache: Path, *names: str) -> UnitRequest:
    """A unit of a job over these models."""
    folders = {name: str(cache / "models" / f"ann--{name}" / COMMIT) for name in names}
    return unit("score.candidate", spec={"models": [{"name": name, "path": path} for name, path in folders.items()]})


def bring(models: HubModels, request: UnitRequest, kept: Sequence[str] = ()) -> None:
    models.bring(models.missing(request), frozenset(kept), say, never)


def test_a_model_travels_from_who_downloaded_it_to_who_reads_it(url: str, tmp_path: Path) -> None:
    ours, theirs = (HubModels(tmp_path / name, 0, url) for name in ("ours", "theirs"))
    model(tmp_path / "ours", "big")
    ours.send(download("big"), never)
    request = reads(tmp_path / "theirs", "big", "local")
    assert len(theirs.missing(request)) == 2
    bring(theirs, request)
    (missing,) = theirs.missing(request)
    assert missing.folder.parent.name == "ann--local", "what nobody shared is told by who opens it"
    bring(theirs, download("big"))
    assert not theirs.missing(download("big")), "and is not downloaded a second time"


def test_a_look_into_one_model_needs_no_other(url: str, tmp_path: Path) -> None:
    spec = reads(tmp_path, "one", "two").spec
    (wanted,) = HubModels(tmp_path, 0, url).missing(unit("resolve.inspect", {"name": "two"}, spec))
    assert wanted.folder.parent.name == "ann--two"
    assert not HubModels(tmp_path, 0, url).missing(replace(unit("advance", spec=spec), kind="advance"))
    assert not HubModels(tmp_path, 0, "").missing(unit("score.candidate", spec=spec)), "workers share a disk"


def test_adapters_and_data_sets_travel_as_well(url: str, tmp_path: Path) -> None:
    ours, theirs = (HubModels(tmp_path / name, 0, url) for name in ("ours", "theirs"))
    paths = ["data/test.jsonl", "data/train.jsonl"]
    folder = tmp_path / "ours" / "datasets" / "ann--questions" / COMMIT
    (folder / "data").mkdir(parents=True)
    for path in paths:
        (folder / path).write_text(path)
    ours.send(unit("resolve.data", {"repo": "ann/questions", "commit": COMMIT, "paths": paths}), never)
    model(tmp_path / "ours", "adapter")
    ours.send(download("adapter"), never)
    there = tmp_path / "theirs"
    task = {"folder": str(there / "datasets" / "ann--questions" / COMMIT), "splits": {"test": paths[:1]}}
    adapter = {"path": str(there / "models" / "ann--adapter" / COMMIT)}
    spec = {"models": [{"name": "m", "path": "/models/m", "adapter": adapter}], "suite_data": {"proxy": [task]}}
    bring(theirs, unit("score.candidate", spec=spec))
    assert Path(task["folder"], "data/test.jsonl").read_text() == "data/test.jsonl"
    assert not Path(task["folder"], "data/train.jsonl").exists()
    assert Path(adapter["path"], COMPLETE).is_file()


def test_models_that_no_job_needs_make_room_within_the_budget(url: str, tmp_path: Path) -> None:
    ours, theirs = HubModels(tmp_path / "ours", 0, url), HubModels(tmp_path / "theirs", 2500, url)
    for name in ("first", "second", "third"):
        model(tmp_path / "ours", name)
        ours.send(download(name), never)
    for name in ("first", "second"):
        bring(theirs, reads(tmp_path / "theirs", name))
        time.sleep(0.01)
    (first, second) = (str(each.parent) for each in sorted((tmp_path / "theirs").glob(f"models/*/*/{COMPLETE}")))
    with pytest.raises(DiskFullError, match="budget"):
        bring(theirs, reads(tmp_path / "theirs", "third"), kept=[first, second])
    bring(theirs, reads(tmp_path / "theirs", "third"), kept=[second])
    assert not Path(first).exists()
    assert Path(second).exists()
    assert used_bytes(tmp_path / "theirs") <= 2500


def alone(disk: Path, home: Path, command: Sequence[str]) -> list[str]:
    """The command on a machine of its own: what others see at `home`, it sees elsewhere."""
    script = 'mount --bind "$1" "$2"; shift 2; exec "$@"'
    disk.mkdir(parents=True)
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", str(disk), str(home), *command]


@pytest.mark.long
@pytest.mark.skipif(not can_isolate(), reason="mount namespaces need root")
def test_a_zoo_from_the_hub_reaches_workers_that_share_no_disk_and_know_no_hub(
    server: ObjectStorage, database_url: str, tmp_path: Path
) -> None:
    root, home, port = tmp_path / "models" / "zoo", tmp_path / "home", free_port()
    build_zoo(root)
    home.mkdir()
    settings = {
        **server.environment,
        "GLUE_ARTIFACTS_URL": server.bucket("glue-hub"),
        "GLUE_ROOTS": str(root.parent),
        "GLUE_ENGINE_RUNNER": REGISTRY_RUNNER,
        "GLUE_LEASE_SECONDS": "10",
        "GLUE_HUB_CACHE_BYTES": str(10_000_000),
        "HF_HUB_OFFLINE": "1",
    }
    with hub(tmp_path / "hub") as standing, processes(home, database_url, **settings) as running:
        for name in ("base", *MEMBERS):
            standing.store.add_folder(f"{OWNER}/{name}", root / name)
        start(running, standing, tmp_path / "machines", home, port)
        with temporary_key(database_url) as key:
            job = submitted(f"http://127.0.0.1:{port}", root, key)
            downloads = standing.requests("GET", "model.safetensors")
        logs = running.log("machine-cpu") + running.log("machine-hub")
        assert job["status"] == "succeeded", (job, logs)
    assert all(model["path"].startswith(str(home)) for model in job["spec"]["models"])
    for machine in ("cpu", "hub"):
        found = {path.parents[1].name for path in (tmp_path / "machines" / machine).glob(f"hub/models/*/*/{COMPLETE}")}
        assert found == {f"{OWNER}--{name}" for name in ("base", *MEMBERS)}, machine
    # These models are no larger than a look into their headers: the API looks once, one worker downloads once.
    whole = [request.path for request in downloads if request.sent > 3000]
    assert len(whole) == 2 * len(("base", *MEMBERS)), whole


def start(running: Processes, standing: StandIn, disks: Path, home: Path, port: int) -> None:
    """The API and the worker of class hub know the Hub; each sees a disk of its own."""
    online = {"HF_ENDPOINT": standing.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    running.maintenance()
    for name, classes, more in (
        ("cpu", [WorkerClass.CPU, WorkerClass.GPU], {}),
        ("hub", [WorkerClass.HUB], online),
    ):
        running.start(f"machine-{name}", alone(disks / name, home, worker_command(name, classes)), **more)
    command = [sys.executable, "-m", "uvicorn", "api.app:app", "--port", str(port)]
    running.start("api", alone(disks / "api", home, command), **online)
    assert wait_for(lambda: answers(f"http://127.0.0.1:{port}"), 60), running.log("api")


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.HTTPError:
        return False


def submitted(url: str, root: Path, key: str) -> dict[str, Any]:
    """The job over the zoo by its names on the Hub, as it ended."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
        members = [{"name": name, "source": f"{OWNER}/{name}"} for name in MEMBERS]
        zoo = {"name": "zoo", "base": {"source": f"hf://{OWNER}/base"}, "members": members}
        client.post("/v1/zoos", json=zoo).raise_for_status()
        answer = client.post("/v1/jobs", json=job_request(root, "zoo"))
        assert answer.is_success, answer.text
        job_id, ended = answer.json()["id"], ("succeeded", "failed", "cancelled")

        def job() -> dict[str, Any]:
            return dict(client.get(f"/v1/jobs/{job_id}").raise_for_status().json())

        wait_for(lambda: job()["status"] in ended, 200)
        return job()
