"""A job that starts from an earlier one: pinned at submission, refused with the reason where it cannot be."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from glue.plans.units import unit
from glue.records.database import Database
from glue.records.jobs import create_job, request_cancel
from glue.specs.expression import linear
from glue.specs.plan import StagePlan, UnitOutcome
from tests.support.service_api import job_request, job_spec, step, write_zoo

MEANS = {0.25: 0.5, 0.5: 0.75, 0.75: 0.625}


@pytest.fixture
def zoo(client: TestClient, root: Path) -> dict[str, Any]:
    stored: dict[str, Any] = client.post("/v1/zoos", json=write_zoo(root)).json()
    return stored


def searched(database: Database, root: Path, owner: str, other: str = "b", ended: bool = True) -> str:
    """A job whose search scored three candidates, one of them on a part of the items too."""
    payloads = [
        {"name": f"{weight} a", "expression": linear({"a": weight, other: 1 - weight}).as_json(), "suite": "proxy"}
        for weight in MEANS
    ]
    payloads.append({**payloads[0], "name": "part", "share": 0.25})
    units = tuple(unit("score.candidate", payload) for payload in payloads)
    with database.transaction() as session:
        plan = StagePlan("search", 3, "one", ready=True, units=units)
        job_id = create_job(session, owner, job_spec(root), [plan]).id
    for mean in (*MEANS.values(), 0.99):
        step(database, UnitOutcome({"name": "x", "score": {"mean": mean}}))
    if ended:
        with database.transaction() as session:
            request_cancel(session, owner, job_id)
    return job_id


def submit(client: TestClient, root: Path, job_id: str) -> Any:
    return client.post("/v1/jobs", json=job_request(root, search={"warm_start": job_id}))


def test_the_best_candidates_are_pinned_in_the_stored_spec(
    client: TestClient, zoo: dict[str, Any], root: Path, database: Database
) -> None:
    job_id = searched(database, root, "ann")
    answer = submit(client, root, job_id)
    assert answer.status_code == 201, answer.json()
    spec = answer.json()["spec"]
    assert spec["search"]["warm_start"] is None
    assert spec["warm_start"]["job"] == job_id
    assert [each["name"] for each in spec["warm_start"]["candidates"]] == ["0.5 a", "0.75 a", "0.25 a"]


@pytest.mark.parametrize(
    ("owner", "other", "ended", "code"),
    [
        ("bob", "b", True, "unknown_job"),
        ("ann", "b", False, "job_not_ended"),
        ("ann", "somebody-else", True, "other_members"),
    ],
)
def test_what_cannot_be_started_from_is_told(
    client: TestClient,
    zoo: dict[str, Any],
    root: Path,
    database: Database,
    owner: str,
    other: str,
    ended: bool,
    code: str,
) -> None:
    answer = submit(client, root, searched(database, root, owner, other, ended))
    assert answer.status_code == 422
    [problem] = answer.json()["errors"]
    assert (problem["pointer"], problem["code"]) == ("/search/warm_start", code)
    assert problem["fix"]


def test_a_job_without_a_scored_candidate_is_told(
    client: TestClient, zoo: dict[str, Any], root: Path, database: Database
) -> None:
    with database.transaction() as session:
        plan = StagePlan("report", 6, ready=True, units=(unit("report.write", {}),))
        job_id = create_job(session, "ann", job_spec(root), [plan]).id
        request_cancel(session, "ann", job_id)
    assert submit(client, root, job_id).json()["errors"][0]["code"] == "no_trials"
