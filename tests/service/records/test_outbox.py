"""Wake-ups: written, taken by one dispatcher, due when they should be, repeated for work that waits."""

from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import make_url, select, text

from glue.records.database import Database, database_time
from glue.records.jobs import request_cancel
from glue.records.leases import WorkerIdentity
from glue.records.outbox import CHANNEL, mark_sent, take_unsent, waiting_classes, wake
from glue.records.tables import Outbox
from glue.records.workers import register_worker
from glue.specs.plan import StagePlan
from tests.support.chains import OWNER, candidate, inspect_unit, must_take, submit

NO_TIME = timedelta(0)


def take_all(database: Database) -> list[str]:
    with database.transaction() as session:
        rows = take_unsent(session, 100)
        mark_sent(session, [row.id for row in rows])
        return [row.worker_class for row in rows]


def test_a_wake_up_is_taken_once(watched: Database) -> None:
    submit(watched, [StagePlan("alone", 0, ready=True, units=(inspect_unit("a"), candidate("b"), candidate("c")))])

    assert take_all(watched) == ["cpu", "gpu"]
    assert take_all(watched) == []


def test_a_wake_up_that_was_not_marked_is_taken_again(watched: Database) -> None:
    submit(watched)

    with watched.transaction() as session:
        assert len(take_unsent(session, 100)) == 1
    assert take_all(watched) == ["cpu"]


def test_two_dispatchers_share_the_work(watched: Database) -> None:
    with watched.transaction() as session:
        for _ in range(4):
            wake(session, ["cpu"])

    with watched.transaction() as one, watched.transaction() as other:
        first, second = take_unsent(one, 3), take_unsent(other, 3)

    assert (len(first), len(second)) == (3, 1)


def test_a_wake_up_waits_until_it_is_due(watched: Database) -> None:
    with watched.transaction() as session:
        wake(session, ["gpu"], database_time(session) + timedelta(hours=1))
    assert take_all(watched) == []

    with watched.transaction() as session:
        session.execute(text("UPDATE outbox SET due_at = now()"))
    assert take_all(watched) == ["gpu"]


def test_what_was_sent_long_ago_is_forgotten(watched: Database) -> None:
    submit(watched)
    take_all(watched)
    with watched.transaction() as session:
        session.execute(text("UPDATE outbox SET sent_at = sent_at - interval '2 hours'"))
    submit(watched)
    take_all(watched)

    with watched.transaction() as session:
        assert session.scalar(text("SELECT count(*) FROM outbox")) == 1


def test_a_wake_up_is_heard_after_the_commit_and_not_before(watched: Database, watched_url: str) -> None:
    url = make_url(watched_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as listener:
        listener.execute(f"LISTEN {CHANNEL}")
        with watched.transaction() as session:
            wake(session, ["gpu"])
            session.flush()
            assert list(listener.notifies(timeout=0.1)) == []
        [heard] = listener.notifies(timeout=5, stop_after=1)
    assert heard.payload == "gpu"


def test_classes_with_work_that_waits(watched: Database) -> None:
    job_id = submit(watched, [StagePlan("alone", 0, ready=True, units=(candidate("a"), inspect_unit("b")))])

    def waiting(age: timedelta = NO_TIME) -> list[str]:
        with watched.transaction() as session:
            return waiting_classes(session, age)

    assert waiting() == ["cpu", "gpu"]
    assert waiting(timedelta(seconds=30)) == []
    assert must_take(watched).unit.kind == "score.candidate"
    assert waiting() == ["cpu"]
    with watched.transaction() as session:
        request_cancel(session, OWNER, job_id)
    assert waiting() == []


@pytest.mark.parametrize("change", ["job SET spec_version = 2", "unit SET not_before = now() + interval '1 min'"])
def test_work_that_cannot_be_claimed_does_not_wait(watched: Database, change: str) -> None:
    submit(watched)
    with watched.transaction() as session:
        session.execute(text(f"UPDATE {change}"))

        assert waiting_classes(session, NO_TIME) == []


@pytest.mark.parametrize(("present", "rows"), [(0, 1), (1, 1), (2, 2), (9, 4)])
def test_units_that_come_together_wake_as_many_workers(watched: Database, present: int, rows: int) -> None:
    with watched.transaction() as session:
        for number in range(present):
            register_worker(session, WorkerIdentity(f"wrk_{number}", ("cpu", "gpu")))
        register_worker(session, WorkerIdentity("wrk_hub", ("hub",)))
        wake(session, ["gpu"] * 4)
        assert list(session.scalars(select(Outbox.worker_class))) == ["gpu"] * rows
