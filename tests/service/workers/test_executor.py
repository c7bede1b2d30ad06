"""The executor within this process: bells, drains, idle engines, and answers of the database that get lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Thread
from time import monotonic

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from glue.records import leases
from glue.records.database import Database
from glue.records.events import list_events
from glue.records.leases import Claim, WorkerIdentity
from glue.specs.plan import WorkerClass
from tests.support.service import FAST, Jobs
from workers import executor as executor_module
from workers.engine.process import WarmEngine
from workers.executor import Executor
from workers.heartbeat import Heartbeat, Lease
from workers.settings import Settings
from workers.unit_runner import UnitRunner

IDENTITY = WorkerIdentity("wrk_test", tuple(WorkerClass), 2**40)


class ForgetfulDatabase(Database):
    """Commits, and loses the answer of the first `losses` commits."""

    losses = 1

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with super().transaction() as session:
            yield session
        if self.losses:
            self.losses -= 1
            raise OperationalError("COMMIT", None, RuntimeError("the connection was lost"))


@pytest.fixture
def settings(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in FAST.items():
        monkeypatch.setenv(name, value)
    return Settings.model_validate({"database_url": database_url, "GLUE_HOME": tmp_path, "GLUE_POLL_SECONDS": 600})


@pytest.fixture
def executor(settings: Settings) -> Iterator[Executor]:
    executor = Executor(settings, list(WorkerClass))
    executor.start()
    yield executor
    executor.drain()
    executor.join()


def claim(jobs: Jobs) -> Claim:
    with jobs.database.transaction() as session:
        found = leases.claim(session, IDENTITY, timedelta(seconds=5))
    assert found
    return found


def test_a_wake_up_returns_when_no_work_is_left(executor: Executor, jobs: Jobs) -> None:
    job_ids = [jobs.submit({}), jobs.submit({})]
    executor.wake()
    assert [jobs.job(job_id).status for job_id in job_ids] == ["succeeded"] * 2


def test_a_wake_up_does_not_hold_up_a_drain(executor: Executor, jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.submit({"do": "wait_for", "path": str(tmp_path / "never")})
    waiting = Thread(target=executor.wake)
    waiting.start()
    jobs.wait_for(lambda: jobs.states(job_id) == ["leased"])
    started = monotonic()
    executor.drain()
    waiting.join()
    executor.join()
    assert monotonic() - started < 5
    assert jobs.states(job_id) == ["ready"]


def test_an_idle_executor_ends_at_once(executor: Executor) -> None:
    started = monotonic()
    executor.drain()
    executor.join()
    assert monotonic() - started < 2


def test_a_unit_that_hangs_is_tried_again_and_its_events_tell_why(
    settings: Settings, jobs: Jobs, tmp_path: Path
) -> None:
    executor = Executor(settings.model_copy(update={"stall": 1.0, "poll": 0.3}), list(WorkerClass))
    executor.start()
    job_id = jobs.submit({"do": "hang", "path": str(tmp_path / "once")})
    jobs.wait_for_status(job_id, "succeeded")
    executor.drain()
    executor.join()
    assert jobs.attempts(job_id) == ["failed", "succeeded"]
    with jobs.database.transaction() as session:
        events = list_events(session, job_id, 0, 100)
    (retried,) = (event.data["error"] for event in events if event.type == "unit.retried")
    assert (retried["reason"], retried["fault"]) == ("worker_lost", "transient")
    assert "no progress for 1 s and was killed; its last: taking the lock" in retried["detail"]


def test_an_engine_that_nobody_needs_gives_its_memory_back(
    settings: Settings, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "_IDLE_ENGINE_SECONDS", 0.2)
    executor = Executor(settings.model_copy(update={"poll": 0.3}), list(WorkerClass))
    executor.start()
    jobs.wait_for_status(jobs.submit({}), "succeeded")
    jobs.wait_for(lambda: executor.engine_pid is None, 5)
    executor.drain()
    executor.join()


def test_a_completion_whose_answer_was_lost_counts_once(settings: Settings, jobs: Jobs) -> None:
    job_id = jobs.submit({})
    database, engine = ForgetfulDatabase(settings.database_url), WarmEngine(settings)
    database.losses = 0
    claimed = claim(jobs)
    runner = UnitRunner(settings, database, engine)
    lease = Lease(claimed.unit.unit_id, claimed.token, monotonic() + 5)

    def lose_the_next_answer(_: object = None) -> None:
        database.losses = 1

    assert runner.run(claimed, lease, lose_the_next_answer).startswith("succeeded, but no longer ours")
    assert jobs.states(job_id) == ["succeeded"]
    assert jobs.attempts(job_id) == ["succeeded"]
    engine.stop()
    database.dispose()


def test_a_heartbeat_says_when_the_lease_is_gone(settings: Settings, jobs: Jobs) -> None:
    jobs.submit({})
    claimed = claim(jobs)
    heartbeat = Heartbeat(jobs.database, IDENTITY, timedelta(seconds=1))
    heartbeat.start()
    with heartbeat.hold(claimed, monotonic() + 60) as lease:
        assert lease.interruption() is None
        with jobs.database.transaction() as session:
            leases.release(session, claimed.unit.unit_id, claimed.token)
        jobs.wait_for(lambda: lease.interruption() == "lost", 5)
    heartbeat.stop(5)


def test_a_lease_ends_by_the_own_clock_too() -> None:
    assert Lease("unit_1", 1, monotonic() - 0.01).interruption() == "lost"
    assert Lease("unit_1", 1, monotonic() + 10).interruption() is None
