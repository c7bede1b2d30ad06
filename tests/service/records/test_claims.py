"""Claims and heartbeats: who gets which unit, and for how long."""

from datetime import timedelta

import pytest
from sqlalchemy import text

from glue.records.database import Database, database_time
from glue.records.jobs import get_job, get_unit, list_stages, request_cancel
from glue.records.leases import Heartbeat, WorkerIdentity, heartbeat
from glue.records.tables import Attempt, Unit
from glue.records.workers import register_worker, set_draining
from glue.specs.plan import StagePlan
from tests.support.chains import (
    LEASE,
    OTHER_WORKER,
    OWNER,
    WORKER,
    candidate,
    expire,
    finish,
    inspect_unit,
    must_take,
    submit,
    take,
)


def test_a_claim_carries_all_that_a_worker_needs(watched: Database) -> None:
    job_id = submit(watched)

    claimed = must_take(watched)

    with watched.transaction() as session:
        job = get_job(session, OWNER, job_id)
        unit = get_unit(session, job_id, claimed.unit.unit_id)
        attempt = session.get_one(Attempt, claimed.token)
        stages = {stage.name: stage for stage in list_stages(session, job_id)}
        now = database_time(session)
    assert (claimed.owner, claimed.token, claimed.unit.token) == (OWNER, unit.lease_token, unit.lease_token)
    assert (claimed.unit.stage, claimed.unit.payload, claimed.unit.digest) == ("resolve", {"name": "one"}, unit.digest)
    assert (unit.state, unit.attempts, unit.lease_owner) == ("leased", 1, WORKER.id)
    assert unit.lease_expires_at is not None
    assert timedelta(seconds=20) < unit.lease_expires_at - now <= LEASE
    assert (attempt.worker, attempt.unit_id, attempt.ended_at) == (WORKER.id, unit.id, None)
    assert (job.status, stages["resolve"].state, stages["join"].state) == ("running", "running", "pending")
    assert job.started_at is not None
    assert stages["resolve"].started_at is not None


def test_tokens_increase(watched: Database) -> None:
    submit(watched)

    first, second = must_take(watched), must_take(watched, OTHER_WORKER)

    assert first.token < second.token
    assert first.unit.unit_id != second.unit.unit_id
    assert take(watched) is None


def test_the_order_is_priority_then_age_then_place_in_the_chain(watched: Database) -> None:
    plans = [
        StagePlan("second", 2, ready=True, units=(inspect_unit("c"),)),
        StagePlan("first", 1, ready=True, units=(inspect_unit("a"), inspect_unit("b"))),
    ]
    old, young, urgent = submit(watched, plans), submit(watched, plans), submit(watched, plans, priority=5)

    order = [(claim.unit.job_id, claim.unit.payload["name"]) for claim in (must_take(watched) for _ in range(9))]

    assert order == [(job, name) for job in (urgent, old, young) for name in "abc"]


@pytest.mark.parametrize(
    ("worker", "gets"),
    [
        (WorkerIdentity("wrk_cpu", ("cpu",), 0), "one"),
        (WorkerIdentity("wrk_gpu", ("gpu",), 100), "fits"),
        (WorkerIdentity("wrk_big", ("gpu",), 101), "large"),
        (WorkerIdentity("wrk_none", ("gpu",), 0), None),
        (WorkerIdentity("wrk_hub", ("hub",), 1000), None),
    ],
    ids=lambda value: str(getattr(value, "id", value)),
)
def test_a_worker_gets_only_what_it_can_run(watched: Database, worker: WorkerIdentity, gets: str | None) -> None:
    units = (candidate("large", 101), candidate("fits", 100), inspect_unit("one"))
    submit(watched, [StagePlan("mixed", 0, ready=True, units=units)])

    claimed = take(watched, worker)

    assert (claimed and claimed.unit.payload["name"]) == gets


@pytest.mark.parametrize(
    "hidden",
    [
        "UPDATE unit SET not_before = clock_timestamp() + interval '1 hour'",
        "UPDATE job SET spec_version = 2",
    ],
    ids=["not yet", "a spec of a later release"],
)
def test_what_a_claim_leaves_alone(watched: Database, hidden: str) -> None:
    submit(watched)
    with watched.transaction() as session:
        session.execute(text(hidden))

    assert take(watched) is None


def test_a_claim_passes_by_what_another_transaction_holds(watched: Database) -> None:
    submit(watched)
    blocked = submit(watched, [StagePlan("alone", 0, ready=True, units=(inspect_unit("x"),))], priority=9)
    with watched.transaction() as session:
        session.execute(text("SELECT id FROM unit WHERE job_id = :job FOR UPDATE"), {"job": blocked})

        claimed = must_take(watched)

    assert claimed.unit.job_id != blocked
    assert must_take(watched).unit.job_id == blocked


def test_a_heartbeat_renews_the_lease_and_keeps_the_progress(watched: Database) -> None:
    job_id = submit(watched)
    claimed = must_take(watched)

    with watched.transaction() as session:
        arguments = (WORKER.id, claimed.unit.unit_id, claimed.token)
        first = heartbeat(session, *arguments, timedelta(hours=1), {"fraction": 0.5, "message": "half\0way"})
        second = heartbeat(session, *arguments, timedelta(hours=1), None)
        unit = get_unit(session, job_id, claimed.unit.unit_id)
        now = database_time(session)

    assert first == second == Heartbeat(alive=True, cancel=False, drain=False)
    assert unit.lease_expires_at is not None
    assert unit.lease_expires_at - now > timedelta(minutes=59)
    assert unit.progress == {"fraction": 0.5, "message": "half\ufffdway"}


def test_a_heartbeat_for_a_lease_that_is_gone_changes_nothing(watched: Database) -> None:
    submit(watched)
    claimed = must_take(watched)
    expire(watched, claimed)

    with watched.transaction() as session:
        late = heartbeat(session, WORKER.id, claimed.unit.unit_id, claimed.token, LEASE, {"fraction": 1})
        unit = session.get_one(Unit, claimed.unit.unit_id)

    assert late == Heartbeat(alive=False, cancel=False, drain=False)
    assert unit.progress is None


@pytest.mark.parametrize("wrong", ["worker", "token", "unit"])
def test_a_heartbeat_needs_worker_unit_and_token(watched: Database, wrong: str) -> None:
    submit(watched)
    mine, other = must_take(watched), must_take(watched, OTHER_WORKER)
    worker_id = OTHER_WORKER.id if wrong == "worker" else WORKER.id
    token = other.token if wrong == "token" else mine.token
    unit_id = other.unit.unit_id if wrong == "unit" else mine.unit.unit_id

    with watched.transaction() as session:
        assert not heartbeat(session, worker_id, unit_id, token, LEASE, None).alive


def test_a_heartbeat_brings_drain(watched: Database) -> None:
    submit(watched)
    claimed = must_take(watched)
    with watched.transaction() as session:
        register_worker(session, WORKER)
        set_draining(session, WORKER.id)

    with watched.transaction() as session:
        beat = heartbeat(session, WORKER.id, claimed.unit.unit_id, claimed.token, LEASE, None)

    assert beat == Heartbeat(alive=True, cancel=False, drain=True)
    finish(watched, claimed)


def test_a_heartbeat_brings_cancel_and_the_lease_is_not_renewed(watched: Database) -> None:
    job_id = submit(watched)
    claimed = must_take(watched)
    with watched.transaction() as session:
        before = get_unit(session, job_id, claimed.unit.unit_id).lease_expires_at
        request_cancel(session, OWNER, job_id)

    with watched.transaction() as session:
        beat = heartbeat(session, WORKER.id, claimed.unit.unit_id, claimed.token, timedelta(hours=1), None)
        after = get_unit(session, job_id, claimed.unit.unit_id).lease_expires_at

    assert beat == Heartbeat(alive=True, cancel=True, drain=False)
    assert after == before
