"""Worker processes as they report themselves."""

import os

import pytest
from sqlalchemy import text

from glue.records.database import Database
from glue.records.errors import NotFoundError
from glue.records.workers import beat_worker, forget_worker, list_workers, register_worker, set_draining
from tests.support.chains import OTHER_WORKER, WORKER, expire, must_take, submit


def test_a_worker_is_entered_with_what_it_holds(watched: Database) -> None:
    with watched.transaction() as session:
        register_worker(session, WORKER)
        register_worker(session, OTHER_WORKER)
    submit(watched)
    claimed = must_take(watched)

    with watched.transaction() as session:
        first, second = list_workers(session)
    assert (first.id, first.unit_id, first.draining) == (WORKER.id, claimed.unit.unit_id, False)
    assert (first.pid, tuple(first.classes), first.gpu_memory_bytes) == (os.getpid(), WORKER.classes, 2**40)
    assert second.unit_id is None
    expire(watched, claimed)
    with watched.transaction() as session:
        assert list_workers(session)[0].unit_id is None


def test_a_beat_tells_whether_to_drain(watched: Database) -> None:
    with watched.transaction() as session:
        register_worker(session, WORKER)
    with watched.transaction() as session:
        [before] = list_workers(session)
        assert not beat_worker(session, WORKER.id)
        set_draining(session, WORKER.id)
        assert beat_worker(session, WORKER.id)
        [after] = list_workers(session)
        assert after.beat_at > before.beat_at
        register_worker(session, WORKER)
        assert not beat_worker(session, WORKER.id)


def test_a_worker_that_is_not_entered(watched: Database) -> None:
    with watched.transaction() as session:
        register_worker(session, WORKER)
        forget_worker(session, WORKER.id)
        forget_worker(session, WORKER.id)

        with pytest.raises(NotFoundError):
            beat_worker(session, WORKER.id)
        with pytest.raises(NotFoundError):
            set_draining(session, WORKER.id)


def test_workers_that_vanished_are_forgotten_after_a_day(watched: Database) -> None:
    with watched.transaction() as session:
        register_worker(session, WORKER)
        session.execute(text("UPDATE worker SET beat_at = beat_at - interval '25 hours'"))
        register_worker(session, OTHER_WORKER)

        assert [worker.id for worker in list_workers(session)] == [OTHER_WORKER.id]
