"""SIGKILL of the worker in the middle of a push, and a cancel there: one commit, or none."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub.faults import Fault
from tests.support.hub.pushing import main_commits
from tests.support.hub.server import OWNER, TOKEN, StandIn, hub
from tests.support.main_job import QUICK_RECOVERY, submit, wait
from tests.support.processes import kill
from tests.support.services import Service, service
from tests.support.tiny_zoo import build_tiny_zoo
from workers.embedded.process import wait_for

REPO = f"{OWNER}/result"
SLOW = Fault("slow", "PUT", "/lfs/", 99, seconds=0.5)


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[StandIn]:
    with hub(tmp_path / "hub") as running:
        yield running


def until_it_pushes(running: Service, standing: StandIn, root: Path) -> str:
    """Submit a job that publishes, and wait until its upload has begun; the job's id."""
    with running.client as client:
        client.put("/v1/hub-token", json={"token": TOKEN}).raise_for_status()
    job_id = submit(running, root, publish={"repo": REPO, "tag": "v1"})
    assert wait_for(lambda: bool(standing.requests("PUT", "/lfs/")), 200)
    return job_id


@pytest.mark.long
def test_a_killed_publisher_and_a_cancelled_one(standing: StandIn, tmp_path: Path) -> None:
    root = build_tiny_zoo(tmp_path / "zoo")
    told = {"HF_ENDPOINT": standing.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    options = ("--workers", "1", "--root", str(root))
    with service(tmp_path / "home", *options, environment=QUICK_RECOVERY | told) as running:
        with standing.faults.failing(SLOW):
            job_id = until_it_pushes(running, standing, root)
            kill(running.pids["worker-1"])
            assert not main_commits(standing, REPO)
            ended = wait(running, job_id)
        assert ended["status"] == "succeeded", ended["error"]
        (commit,) = main_commits(standing, REPO)
        assert ended["published"]["commit"] == commit.oid
        del standing.store.repositories[REPO]
        standing.faults.requests.clear()
        for blob in (standing.store.root / "blobs").iterdir():
            blob.unlink()
        with standing.faults.failing(SLOW):
            job_id = until_it_pushes(running, standing, root)
            with running.client as client:
                client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
            assert wait(running, job_id)["status"] == "cancelled"
        time.sleep(2)
        assert not main_commits(standing, REPO)
