"""The main job over REST: submit it to a running service, wait for its end, look at what it left."""

import time
from pathlib import Path
from typing import Any

import httpx

from tests.support.services import Service
from tests.support.tiny_zoo import job_request, zoo_spec

JOB_SECONDS = 240.0
FINISHED = ("succeeded", "failed", "cancelled")

# Recovery within seconds; long enough for a crowded machine of two cores.
QUICK_RECOVERY = {
    "GLUE_LEASE_SECONDS": "4",
    "GLUE_REAP_SECONDS": "0.5",
    "GLUE_POLL_SECONDS": "1",
    "GLUE_REPUBLISH_SECONDS": "1",
}


def submit(running: Service, root: Path, **changes: Any) -> str:
    """Store the tiny zoo of `root` and submit a job over it; the job's id."""
    with running.client as client:
        client.post("/v1/zoos", json=zoo_spec(root).as_json()).raise_for_status()
        answer = client.post("/v1/jobs", json=job_request(root, **changes))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])


def job(running: Service, job_id: str) -> dict[str, Any]:
    """The job as it is now; a service that is being restarted is asked again."""
    with running.client as client:
        return get(client, f"/v1/jobs/{job_id}")


def get(client: httpx.Client, path: str, seconds: float = 60.0) -> dict[str, Any]:
    """GET until an answer comes: what a client with patience does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            answer = client.get(path)
            if answer.status_code < 500:
                answer.raise_for_status()
                content: dict[str, Any] = answer.json()
                return content
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, f"{path} does not answer"
        time.sleep(0.2)


def wait(running: Service, job_id: str, seconds: float = JOB_SECONDS) -> dict[str, Any]:
    """The job when it has ended."""
    deadline = time.monotonic() + seconds
    while (found := job(running, job_id))["status"] not in FINISHED:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def wait_for_stage(running: Service, job_id: str, stage: str, seconds: float = JOB_SECONDS) -> None:
    """Until a unit of that stage has been started."""
    deadline = time.monotonic() + seconds
    while not any(run["name"] == stage and run["started_at"] for run in job(running, job_id)["stages"]):
        assert time.monotonic() < deadline, f"{stage} does not start"
        time.sleep(0.05)
