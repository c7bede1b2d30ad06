"""Helpers of the API's tests: models that pass the checks, requests, jobs driven without an engine, a real server."""

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from glue.plans.units import unit
from glue.records.database import Database
from glue.records.jobs import create_job
from glue.records.leases import Claim, WorkerIdentity, claim, complete
from glue.references.resolve import resolve_job
from glue.specs.digests import canonical_json, digest_of
from glue.specs.job import JobRequest, JobSpec
from glue.specs.plan import ADVANCE, ArtifactPlan, StageOutcome, StagePlan, UnitOutcome, UnitPlan
from glue.specs.zoo import ZooSpec
from tests.support.model_folders import write_model

WORKER = WorkerIdentity("wrk_test", ("cpu", "gpu", "hub"), 2**40)
LEASE = timedelta(seconds=30)
RESULT = {
    "recommended": "mixture",
    "best_single": "a",
    "gain_over_best_single": 7.5,
    "gain_over_best_single_stderr": 1.25,
}


def write_zoo(root: Path) -> dict[str, Any]:
    """Two model folders and a task folder; gives the zoo's request."""
    for name in ("a", "b"):
        write_model(root / name)
    (root / "tasks").mkdir(exist_ok=True)
    for name in ("math", "math_report"):
        (root / "tasks" / f"{name}.yaml").write_text(f"task: {name}\n")
    return {"name": "small", "members": [{"name": name, "source": str(root / name)} for name in ("a", "b")]}


def job_request(root: Path, **more: Any) -> dict[str, Any]:
    """The request of a job on that zoo."""
    suites = {
        name: {"include_path": str(root / "tasks"), "tasks": [{"task": task}]}
        for name, task in (("proxy", "math"), ("report", "math_report"))
    }
    return {"kind": "model_glue", "zoo": "small", **suites, **more}


def job_spec(root: Path) -> JobSpec:
    """That job's stored spec."""
    return resolve_job(JobRequest.parse(job_request(root)), ZooSpec.parse(write_zoo(root)), [root], 0)


def short_job(database: Database, owner: str, spec: JobSpec, units: Sequence[UnitPlan] = ()) -> str:
    """A job of the one stage `report`, with these units or one; gives its id."""
    plan = StagePlan("report", 6, ready=True, units=tuple(units) or (unit("report.write", {}),))
    with database.transaction() as session:
        return create_job(session, owner, spec, [plan]).id


def write_artifact(artifacts: Path, files: dict[str, bytes]) -> ArtifactPlan:
    """A finished folder below the artifacts' root."""
    entries = [
        {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in sorted(files.items())
    ]
    digest = digest_of({"files": entries})
    for path, content in files.items():
        file = artifacts / digest[:2] / digest / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return ArtifactPlan("model", digest, f"{digest[:2]}/{digest}", {"files": entries})


def report_files(report: dict[str, Any]) -> dict[str, bytes]:
    """The files of an artifact with that report."""
    return {"report.json": canonical_json(report).encode(), "model.safetensors": bytes(range(256)) * 8}


def step(database: Database, outcome: UnitOutcome) -> Claim | None:
    """Claim one unit and complete it; nothing follows a stage."""
    with database.transaction() as session:
        claimed = claim(session, WORKER, LEASE)
    if claimed is not None:
        with database.transaction() as session:
            complete(session, claimed.unit.unit_id, claimed.token, outcome, _nothing_follows)
    return claimed


def finish_job(database: Database, plan: ArtifactPlan) -> None:
    """Drive a short job to its end, with that artifact as its result."""
    while True:
        with database.transaction() as session:
            claimed = claim(session, WORKER, LEASE)
        if claimed is None:
            return
        outcome = UnitOutcome({"name": "x", "score": {"mean": 0.5}}, plan)
        if claimed.unit.kind == ADVANCE:
            outcome = UnitOutcome({**RESULT, "digest": plan.digest, "location": plan.location}, finished=True)
        with database.transaction() as session:
            complete(session, claimed.unit.unit_id, claimed.token, outcome, _nothing_follows)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """A real server on a free port in a thread of this process; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


def _nothing_follows(spec: JobSpec, outcomes: Sequence[StageOutcome]) -> Sequence[StagePlan]:
    return ()
