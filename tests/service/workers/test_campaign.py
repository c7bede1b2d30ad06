"""A seeded campaign of kills, pauses and crashes of slots and servers, and what must hold after it."""

import logging
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from glue.records.database import Database
from glue.records.schema import upgrade
from glue.records.tables import Attempt, Event, Job, Unit
from tests.support.service import Jobs, Processes, processes
from workers.embedded.postgres import PostgresServer
from workers.embedded.valkey import ValkeyServer

logger = logging.getLogger(__name__)

JOBS, UNITS, SLOTS, SECONDS = 20, 6, 3, 40.0


class Nemesis:
    """Breaks something now and then; starts again what a supervisor would."""

    def __init__(self, seed: int, service: Processes, postgres: PostgresServer, valkey: ValkeyServer) -> None:
        self._random = random.Random(seed)
        self._service = service
        self._postgres = postgres
        self._valkey = valkey
        self._count = 0
        self.slots = [self._slot() for _ in range(SLOTS)]
        self.done: Counter[str] = Counter()

    def strike(self) -> None:
        """One fault."""
        deeds = [self._kill_slot, self._kill_engine, self._pause, self._crash_database, self._crash_broker]
        deed = self._random.choices(deeds, weights=[5, 3, 3, 1, 1])[0]
        self.done[deed.__name__] += 1
        deed()
        self.tend()

    def tend(self) -> None:
        """Put another slot where one has died."""
        self.slots = [slot if slot.poll() is None else self._slot() for slot in self.slots]

    def _slot(self) -> subprocess.Popen[bytes]:
        self._count += 1
        return self._service.slot(f"slot-{self._count}")

    def _kill_slot(self) -> None:
        slot = self._random.choice(self.slots)
        slot.kill()
        slot.wait()

    def _kill_engine(self) -> None:
        for engine in self._service.engines()[:1]:
            engine.kill()

    def _pause(self) -> None:
        slot = psutil.Process(self._random.choice(self.slots).pid)
        slot.suspend()
        time.sleep(2.5)
        slot.resume()

    def _crash_database(self) -> None:
        self._postgres.child.stop(self._random.choice([signal.SIGKILL, signal.SIGQUIT]), 5.0)
        self._postgres.start()

    def _crash_broker(self) -> None:
        self._valkey.child.stop(signal.SIGKILL, 5.0)
        self._valkey.start()


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_and_nothing_is_written_twice(tmp_path: Path, seed: int) -> None:
    postgres, valkey = PostgresServer(tmp_path / "server"), ValkeyServer(tmp_path / "server")
    postgres.start()
    valkey.start()
    upgrade(postgres.url)
    database = Database(postgres.url)
    jobs = Jobs(database)
    job_ids = [jobs.submit(*[{"do": "sleep", "seconds": 0.3}] * UNITS) for _ in range(JOBS)]
    with processes(tmp_path, postgres.url, valkey.url) as service:
        service.maintenance()
        nemesis = Nemesis(seed, service, postgres, valkey)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(0.7)
            nemesis.strike()
        for job_id in job_ids:
            jobs.wait_for(lambda: nemesis.tend() or jobs.job(job_id).finished_at is not None, 120)  # noqa: B023
    check(database, job_ids)
    logger.info("seed %d: faults %s, attempts %s", seed, dict(nemesis.done), outcomes(database))
    database.dispose()
    valkey.stop()
    postgres.stop()


def check(database: Database, job_ids: list[str]) -> None:
    """The invariants."""
    with database.transaction() as session:
        statuses = Counter(session.scalars(select(Job.status)))
        units = session.scalars(select(Unit)).all()
        events = session.scalars(select(Event).order_by(Event.job_id, Event.seq)).all()
        attempts = session.scalars(select(Attempt).order_by(Attempt.token)).all()
    # A unit may use up its budget in such weather; then its job says so. No other end is allowed.
    assert sum(statuses.values()) == len(job_ids)
    assert set(statuses) <= {"succeeded", "failed"}
    assert statuses["failed"] <= len(job_ids) // 4
    ended = Counter(event.unit_id for event in events if event.type == "unit.succeeded")
    assert set(ended.values()) <= {1}
    last_token: dict[str, int] = {}
    good: Counter[str] = Counter()
    for attempt in attempts:
        assert attempt.outcome is not None
        last_token[attempt.unit_id] = attempt.token
        good[attempt.unit_id] += attempt.outcome == "succeeded"
    for unit in units:
        assert good[unit.id] == (unit.state == "succeeded")
        assert unit.lease_token is None
    for event in events:
        # Whatever succeeded did so under the last claim of its unit: the fence held.
        if event.type == "unit.succeeded":
            assert event.unit_id
            assert event.token == last_token[event.unit_id]
    for job_id in job_ids:
        assert [event.seq for event in events if event.job_id == job_id] == list(
            range(1, 1 + sum(event.job_id == job_id for event in events))
        )


def outcomes(database: Database) -> dict[str | None, int]:
    """How attempts ended."""
    with database.transaction() as session:
        return dict(Counter(session.scalars(select(Attempt.outcome))))
