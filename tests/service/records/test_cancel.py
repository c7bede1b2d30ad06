"""Cancelling a job: at once where nobody works on it, otherwise when the last worker lets go."""

from collections.abc import Callable

import pytest

from glue.records.database import Database
from glue.records.errors import JobFinishedError, NotFoundError
from glue.records.events import list_events
from glue.records.jobs import list_stages, list_units, request_cancel
from glue.records.leases import Claim, complete, fail, reap, release
from glue.records.tables import Job
from glue.specs.plan import UnitOutcome
from tests.support.chains import (
    OTHER_WORKER,
    OWNER,
    TRANSIENT_ERROR,
    candidate,
    expire,
    finish,
    finish_all,
    must_take,
    status_of,
    submit,
    take,
    unlock,
)


def cancel(database: Database, job_id: str) -> Job:
    with database.transaction() as session:
        return request_cancel(session, OWNER, job_id)


def by_completion(database: Database, claimed: Claim) -> None:
    finish(database, claimed)


def by_failure(database: Database, claimed: Claim) -> None:
    with database.transaction() as session:
        fail(session, claimed.unit.unit_id, claimed.token, TRANSIENT_ERROR, retry=True)


def by_release(database: Database, claimed: Claim) -> None:
    with database.transaction() as session:
        release(session, claimed.unit.unit_id, claimed.token)


def by_reaper(database: Database, claimed: Claim) -> None:
    expire(database, claimed)
    with database.transaction() as session:
        assert reap(session) == 1


def test_a_job_that_nobody_works_on_is_cancelled_at_once(watched: Database) -> None:
    job_id, bystander = submit(watched), submit(watched)
    finish(watched, must_take(watched))

    job = cancel(watched, job_id)

    assert job.status == "cancelled"
    assert job.cancel_requested_at is not None
    assert job.finished_at is not None
    with watched.transaction() as session:
        assert {stage.state for stage in list_stages(session, job_id)} == {"cancelled"}
        assert [unit.state for unit in list_units(session, job_id)] == ["succeeded", "cancelled"]
        types = [event.type for event in list_events(session, job_id, 0, 50)]
    assert types[-2:] == ["job.cancelling", "job.cancelled"]
    assert {unit.job_id for unit in finish_all(watched)} == {bystander}


@pytest.mark.parametrize("let_go", [by_completion, by_failure, by_release, by_reaper])
def test_the_last_worker_ends_a_cancel(watched: Database, let_go: Callable[[Database, Claim], None]) -> None:
    job_id = submit(watched)
    first, last = must_take(watched), must_take(watched, OTHER_WORKER)

    assert cancel(watched, job_id).status == "cancelling"
    let_go(watched, first)
    assert status_of(watched, job_id) == "cancelling"
    let_go(watched, last)

    assert status_of(watched, job_id) == "cancelled"
    with watched.transaction() as session:
        assert [unit.state for unit in list_units(session, job_id)] == ["cancelled", "cancelled"]
    assert take(watched) is None


def test_repeating_a_cancel_changes_nothing(watched: Database) -> None:
    job_id = submit(watched)
    claimed = must_take(watched)

    first, second = cancel(watched, job_id), cancel(watched, job_id)

    assert (first.status, first.cancel_requested_at) == (second.status, second.cancel_requested_at)
    by_release(watched, claimed)
    with watched.transaction() as session:
        types = [event.type for event in list_events(session, job_id, 0, 50)]
    assert types.count("job.cancelling") == 1


def test_a_finished_job_cannot_be_cancelled(watched: Database) -> None:
    job_id = submit(watched)
    finish_all(watched)

    with pytest.raises(JobFinishedError, match="succeeded") as refusal:
        cancel(watched, job_id)
    assert refusal.value.code == "job_finished"
    assert status_of(watched, job_id) == "succeeded"


def test_a_job_is_cancelled_by_its_owner_only(watched: Database) -> None:
    job_id = submit(watched)

    with watched.transaction() as session, pytest.raises(NotFoundError):
        request_cancel(session, "eve", job_id)
    assert status_of(watched, job_id) == "queued"


def test_an_advance_that_comes_too_late_inserts_nothing(watched: Database) -> None:
    job_id = submit(watched)
    while (claimed := must_take(watched)).unit.stage != "search":
        finish(watched, claimed)
    cancel(watched, job_id)
    with watched.transaction() as session:
        before = len(list_units(session, job_id)), len(list_stages(session, job_id))

    with watched.transaction() as session:
        outcome = UnitOutcome(units=(candidate("left"),))
        complete(session, claimed.unit.unit_id, claimed.token, outcome, unlock)

    with watched.transaction() as session:
        assert (len(list_units(session, job_id)), len(list_stages(session, job_id))) == before
    assert status_of(watched, job_id) == "cancelled"
