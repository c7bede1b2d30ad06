"""Pausing a job: nothing more is claimed, what runs is recorded, and a resume goes on as if nothing had been."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event

import pytest
from sqlalchemy import delete, select

from glue.records.database import Database
from glue.records.errors import JobFinishedError, NotFoundError
from glue.records.events import list_events
from glue.records.jobs import list_units, request_cancel, request_pause, request_resume
from glue.records.leases import Claim, claim, complete, fail, heartbeat, reap, release
from glue.records.measures import measure
from glue.records.outbox import waiting_classes
from glue.records.tables import Job, Outbox
from tests.support.chains import (
    AT_ONCE,
    LEASE,
    OTHER_WORKER,
    OWNER,
    TRANSIENT_ERROR,
    USER_ERROR,
    WORKER,
    expire,
    finish,
    finish_all,
    must_take,
    outcome_of,
    status_of,
    submit,
    take,
    unlock,
)


def pause(database: Database, job_id: str) -> Job:
    with database.transaction() as session:
        return request_pause(session, OWNER, job_id)


def resume(database: Database, job_id: str) -> Job:
    with database.transaction() as session:
        return request_resume(session, OWNER, job_id)


def event_types(database: Database, job_id: str) -> list[str]:
    with database.transaction() as session:
        return [event.type for event in list_events(session, job_id, 0, 500)]


def test_nothing_of_a_paused_job_is_claimed_and_others_go_on(watched: Database) -> None:
    job_id, bystander = submit(watched), submit(watched)
    finish(watched, must_take(watched))

    assert pause(watched, job_id).status == "paused"

    assert {unit.job_id for unit in finish_all(watched)} == {bystander}
    assert resume(watched, job_id).status == "running"
    finish_all(watched)
    assert status_of(watched, job_id) == "succeeded"
    types = [type_ for type_ in event_types(watched, job_id) if type_.startswith("job.")]
    assert types == ["job.created", "job.started", "job.paused", "job.resumed", "job.succeeded"]


def test_a_unit_that_runs_keeps_its_lease_and_is_recorded(watched: Database) -> None:
    job_id = submit(watched)
    first, last = must_take(watched), must_take(watched, OTHER_WORKER)
    pause(watched, job_id)

    with watched.transaction() as session:
        beat = heartbeat(session, WORKER.id, first.unit.unit_id, first.token, LEASE)
    assert (beat.alive, beat.cancel) == (True, False)
    finish(watched, first)
    finish(watched, last)

    with watched.transaction() as session:
        states = [unit.state for unit in list_units(session, job_id)]
    assert states == ["succeeded", "succeeded", "ready"]
    assert take(watched) is None
    assert status_of(watched, job_id) == "paused"


def test_a_job_that_never_ran_waits_again_after_a_resume(watched: Database) -> None:
    job_id = submit(watched)
    pause(watched, job_id)
    assert take(watched) is None
    assert resume(watched, job_id).status == "queued"
    finish_all(watched)
    assert status_of(watched, job_id) == "succeeded"


def test_a_resume_wakes_workers_and_a_paused_job_does_not(watched: Database) -> None:
    job_id = submit(watched)
    pause(watched, job_id)
    with watched.transaction() as session:
        session.execute(delete(Outbox))
        assert waiting_classes(session, timedelta(0)) == []
        measured = measure(session)
    assert (measured.queue, measured.jobs) == ([], {"paused": 1})
    resume(watched, job_id)
    with watched.transaction() as session:
        assert list(session.scalars(select(Outbox.worker_class))) == ["cpu"]


def test_repeating_changes_nothing(watched: Database) -> None:
    job_id = submit(watched)
    assert resume(watched, job_id).status == "queued"
    assert [pause(watched, job_id).status for _ in range(2)] == ["paused", "paused"]
    assert [resume(watched, job_id).status for _ in range(2)] == ["queued", "queued"]
    assert event_types(watched, job_id) == ["job.created", "job.paused", "job.resumed"]


def test_a_crash_meanwhile_costs_the_unit_in_flight_alone(watched: Database) -> None:
    job_id = submit(watched)
    claimed = must_take(watched)
    pause(watched, job_id)
    expire(watched, claimed)
    with watched.transaction() as session:
        assert reap(session, backoff=AT_ONCE) == 1

    assert take(watched) is None
    with watched.transaction() as session:
        assert [(unit.state, unit.crashes) for unit in list_units(session, job_id)] == [("ready", 1), ("ready", 0)]
    resume(watched, job_id)
    finish_all(watched)
    assert status_of(watched, job_id) == "succeeded"


def _fail(database: Database, claimed: Claim) -> None:
    with database.transaction() as session:
        fail(session, claimed.unit.unit_id, claimed.token, TRANSIENT_ERROR, retry=True, backoff=AT_ONCE)


def _release(database: Database, claimed: Claim) -> None:
    with database.transaction() as session:
        release(session, claimed.unit.unit_id, claimed.token)


@pytest.mark.parametrize("let_go", [_fail, _release])
def test_a_unit_that_comes_back_waits_for_the_resume(
    watched: Database, let_go: Callable[[Database, Claim], None]
) -> None:
    job_id = submit(watched)
    claimed = must_take(watched)
    pause(watched, job_id)
    let_go(watched, claimed)
    assert take(watched) is None
    resume(watched, job_id)
    assert must_take(watched).unit.unit_id == claimed.unit.unit_id


def test_a_mistake_of_the_user_still_fails_a_paused_job(watched: Database) -> None:
    job_id = submit(watched)
    claimed = must_take(watched)
    pause(watched, job_id)
    with watched.transaction() as session:
        fail(session, claimed.unit.unit_id, claimed.token, USER_ERROR, retry=True)
    assert status_of(watched, job_id) == "failed"


def test_a_job_whose_last_unit_runs_ends_all_the_same(watched: Database) -> None:
    job_id = submit(watched)
    while not ((claimed := must_take(watched)).unit.stage == "join" and claimed.unit.kind == "advance"):
        finish(watched, claimed)
    pause(watched, job_id)
    finish(watched, claimed)
    assert status_of(watched, job_id) == "succeeded"


@pytest.mark.parametrize("runs", [True, False])
def test_a_paused_job_can_be_cancelled(watched: Database, runs: bool) -> None:
    job_id = submit(watched)
    claimed = must_take(watched) if runs else None
    pause(watched, job_id)
    with watched.transaction() as session:
        assert request_cancel(session, OWNER, job_id).status == ("cancelling" if runs else "cancelled")
    for change in (pause, resume):
        with pytest.raises(JobFinishedError, match="cancelled"):
            change(watched, job_id)
    if claimed is not None:
        _release(watched, claimed)
    assert status_of(watched, job_id) == "cancelled"


def test_a_job_is_paused_by_its_owner_only(watched: Database) -> None:
    job_id = submit(watched)
    for change in (request_pause, request_resume):
        with watched.transaction() as session, pytest.raises(NotFoundError):
            change(session, "eve", job_id)
    assert status_of(watched, job_id) == "queued"


def test_a_claim_and_a_pause_exclude_each_other(watched: Database, watched_url: str) -> None:
    """A pause that commits after a claim's look and before its lock is seen; a later one waits for the claim."""
    crowd = Database(watched_url, pool_size=4)
    for _ in range(20):
        job_id = submit(crowd)
        go = Event()

        def claim_one(job: str = job_id, started: Event = go) -> Claim | None:
            started.wait()
            with crowd.transaction() as session:
                return claim(session, WORKER, LEASE)

        with ThreadPoolExecutor(1) as pool:
            claiming = pool.submit(claim_one)
            go.set()
            pause(crowd, job_id)
            claimed = claiming.result(10)
        assert take(crowd) is None
        if claimed is not None:
            with crowd.transaction() as session:
                complete(session, claimed.unit.unit_id, claimed.token, outcome_of(claimed.unit), unlock)
                assert [event.type for event in list_events(session, job_id, 0, 9)][:2] == [
                    "job.created",
                    "job.started",
                ]
    crowd.dispose()
