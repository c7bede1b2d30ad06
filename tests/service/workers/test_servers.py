"""The broker and the database die, hang, forget or come late: work goes on, and results stay the same."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from celery import Celery

from glue.records.database import Database
from glue.records.schema import upgrade
from tests.support.processes import family
from tests.support.service import Jobs, Processes, processes
from workers.app import WORK
from workers.embedded.postgres import PostgresServer
from workers.embedded.valkey import ValkeyServer

NEVER = {"GLUE_POLL_SECONDS": "600", "GLUE_REPUBLISH_SECONDS": "600"}


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[PostgresServer]:
    """A server that a test may kill."""
    server = PostgresServer(tmp_path / "server")
    server.start()
    upgrade(server.url)
    yield server
    server.stop()


def idle(service: Processes) -> None:
    """Wait until a Celery slot listens to its queues."""
    deadline = time.monotonic() + 20
    while "ready." not in service.log("one"):
        assert time.monotonic() < deadline, service.log("one")
        time.sleep(0.05)


def messages(broker: ValkeyServer, worker_class: str) -> int:
    with redis.Redis.from_url(broker.url) as client:
        return int(client.llen(worker_class))


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def publish(broker: ValkeyServer, worker_class: str, copies: int) -> None:
    """Wake-ups that nobody asked for."""
    with Celery(broker=broker.url) as sender:
        for _ in range(copies):
            sender.send_task(WORK, args=[worker_class], queue=worker_class)


def test_a_message_wakes_an_idle_slot(with_broker: Processes, jobs: Jobs) -> None:
    with_broker.environment |= NEVER
    with_broker.maintenance()
    with_broker.slot()
    idle(with_broker)
    jobs.wait_for_status(jobs.submit({}), "succeeded", seconds=10)
    jobs.wait_for_status(jobs.submit({}), "succeeded", seconds=10)


def test_an_announcement_wakes_an_idle_slot_without_a_broker(alone: Processes, jobs: Jobs) -> None:
    alone.environment |= NEVER
    alone.slot()
    jobs.wait_for_status(jobs.submit({}), "succeeded", seconds=10)
    jobs.wait_for_status(jobs.submit({}), "succeeded", seconds=10)


@pytest.mark.parametrize("broker_restarts", [False, True])
def test_a_busy_slot_leaves_messages_to_others(
    with_broker: Processes, jobs: Jobs, broker: ValkeyServer, tmp_path: Path, broker_restarts: bool
) -> None:
    with_broker.environment |= NEVER
    with_broker.slot()
    idle(with_broker)
    if broker_restarts:
        broker.child.stop(signal.SIGKILL, 1.0)
        broker.start()
        jobs.wait_for(lambda: with_broker.log("one").count("Connected to redis") > 1)
    job_id = jobs.submit({"do": "wait_for", "path": str(tmp_path / "flag")})
    publish(broker, "cpu", 5)
    jobs.wait_for(lambda: jobs.states(job_id) == ["leased"])
    time.sleep(1.5)
    assert messages(broker, "cpu") == 4
    (tmp_path / "flag").touch()
    jobs.wait_for(lambda: messages(broker, "cpu") == 0, 10)


def test_a_retry_that_becomes_due_is_announced_without_a_broker(alone: Processes, jobs: Jobs, tmp_path: Path) -> None:
    alone.environment |= NEVER | {"GLUE_BACKOFF_SECONDS": "1"}
    alone.maintenance()
    alone.slot()
    job_id = jobs.submit({"do": "fail_once", "path": str(tmp_path / "flag")})
    jobs.wait_for_status(job_id, "succeeded", seconds=15)
    assert jobs.attempts(job_id) == ["failed", "succeeded"]


def test_messages_in_any_number_change_nothing(
    with_broker: Processes, jobs: Jobs, broker: ValkeyServer, tmp_path: Path
) -> None:
    log = tmp_path / "runs"
    with_broker.maintenance()
    with_broker.slot("one")
    with_broker.slot("two")
    job_id = jobs.submit(*({"log": str(log), "name": str(number)} for number in range(10)))
    for worker_class in ("cpu", "gpu", "hub"):
        publish(broker, worker_class, 30)
    jobs.wait_for_status(job_id, "succeeded")
    assert sorted(int(line.split()[0]) for line in log.read_text().splitlines()) == list(range(10))


def test_a_forgetful_broker_costs_only_time(with_broker: Processes, jobs: Jobs, broker: ValkeyServer) -> None:
    with_broker.environment |= {"GLUE_POLL_SECONDS": "600"}
    maintenance = with_broker.maintenance()
    jobs_before = [jobs.submit({}), jobs.submit({})]
    jobs.wait_for(lambda: messages(broker, "cpu") > 0)
    with redis.Redis.from_url(broker.url) as client:
        client.flushall()
    with_broker.slot()
    idle(with_broker)
    for job_id in jobs_before:
        jobs.wait_for_status(job_id, "succeeded", seconds=15)
    assert maintenance.poll() is None


def test_reminders_do_not_pile_up(with_broker: Processes, jobs: Jobs, broker: ValkeyServer) -> None:
    with_broker.environment |= {"GLUE_REPUBLISH_SECONDS": "0.2"}
    with_broker.maintenance()
    jobs.submit({})
    jobs.wait_for(lambda: messages(broker, "cpu") > 0)
    time.sleep(2.0)
    assert messages(broker, "cpu") == 1


def test_work_goes_on_while_the_broker_is_away_and_after(
    with_broker: Processes, jobs: Jobs, broker: ValkeyServer
) -> None:
    maintenance = with_broker.maintenance()
    slot = with_broker.slot()
    idle(with_broker)
    broker.child.stop(signal.SIGKILL, 1.0)
    jobs.wait_for_status(jobs.submit({}, {}), "succeeded", seconds=20)
    broker.start()
    jobs.wait_for(lambda: with_broker.log("one").count("Connected to redis") > 1, 30)
    publish(broker, "cpu", 1)
    jobs.wait_for(lambda: messages(broker, "cpu") == 0, 30)
    jobs.wait_for_status(jobs.submit({}), "succeeded")
    assert slot.poll() is None
    assert maintenance.poll() is None


def test_a_slot_that_starts_before_its_broker_works_and_stops(
    with_broker: Processes, jobs: Jobs, broker: ValkeyServer
) -> None:
    broker.child.stop(signal.SIGKILL, 1.0)
    with_broker.maintenance()
    slot = with_broker.slot()
    jobs.wait_for_status(jobs.submit({}), "succeeded", seconds=20)
    slot.send_signal(signal.SIGTERM)
    assert slot.wait(10) == 0


def test_a_stop_is_heard_even_if_the_broker_hangs(with_broker: Processes, jobs: Jobs, broker: ValkeyServer) -> None:
    maintenance = with_broker.maintenance()
    slot = with_broker.slot()
    jobs.wait_for_status(jobs.submit({}), "succeeded")
    assert broker.child.pid
    os.kill(broker.child.pid, signal.SIGSTOP)
    try:
        jobs.wait_for_status(jobs.submit({}), "succeeded")
        started = time.monotonic()
        maintenance.send_signal(signal.SIGTERM)
        assert maintenance.wait(10) == 0
        # A second on an idle machine; the client of the broker alone would wait for thirty.
        assert time.monotonic() - started < 5.0
        slot.send_signal(signal.SIGTERM)
        assert slot.wait(15) == 0
    finally:
        os.kill(broker.child.pid, signal.SIGCONT)


def test_a_database_that_restarts_within_the_lease_costs_no_attempt(postgres: PostgresServer, tmp_path: Path) -> None:
    database = Database(postgres.url)
    jobs = Jobs(database)
    with processes(tmp_path, postgres.url, GLUE_LEASE_SECONDS="8") as service:
        service.maintenance()
        service.slot()
        job_id = jobs.submit({"do": "wait_for", "path": str(tmp_path / "flag")})
        jobs.wait_for(lambda: jobs.states(job_id) == ["leased"] and len(service.engines()) == 1)
        postgres.child.stop(signal.SIGKILL, 5.0)
        # The unit ends while nobody can be told.
        (tmp_path / "flag").touch()
        time.sleep(0.5)
        postgres.start()
        jobs.wait_for_status(job_id, "succeeded")
        assert jobs.attempts(job_id) == ["succeeded"]
    database.dispose()


def test_a_worker_that_cannot_renew_its_lease_kills_the_unit(postgres: PostgresServer, tmp_path: Path) -> None:
    database = Database(postgres.url)
    jobs = Jobs(database)
    with processes(tmp_path, postgres.url) as service:
        service.maintenance()
        slot = service.slot()
        job_id = jobs.submit({"do": "wait_for", "path": str(tmp_path / "flag")})
        jobs.wait_for(lambda: jobs.states(job_id) == ["leased"] and len(service.engines()) == 1)
        postgres.child.stop(signal.SIGKILL, 5.0)
        jobs.wait_for(lambda: service.engines() == [], 5)
        postgres.start()
        (tmp_path / "flag").touch()
        jobs.wait_for_status(job_id, "succeeded")
        assert jobs.attempts(job_id) == ["lost", "succeeded"]
        assert slot.poll() is None
    database.dispose()


def test_a_database_that_hangs_is_noticed_too(postgres: PostgresServer, tmp_path: Path) -> None:
    database = Database(postgres.url)
    jobs = Jobs(database)
    with processes(tmp_path, postgres.url) as service:
        service.slot()
        job_id = jobs.submit({"do": "wait_for", "path": str(tmp_path / "flag")})
        jobs.wait_for(lambda: jobs.states(job_id) == ["leased"] and len(service.engines()) == 1)
        assert postgres.child.pid
        backends = family(postgres.child.pid)
        send(backends, signal.SIGSTOP)
        try:
            jobs.wait_for(lambda: service.engines() == [], 5)
        finally:
            send(backends, signal.SIGCONT)
        (tmp_path / "flag").touch()
        service.maintenance()
        jobs.wait_for_status(job_id, "succeeded", seconds=60)
    database.dispose()


def test_everybody_may_start_before_the_database(postgres: PostgresServer, tmp_path: Path) -> None:
    postgres.stop()
    with processes(tmp_path, postgres.url) as service:
        service.maintenance()
        slot = service.slot()
        time.sleep(2.0)
        postgres.start()
        database = Database(postgres.url)
        jobs = Jobs(database)
        jobs.wait_for_status(jobs.submit({}), "succeeded")
        slot.send_signal(signal.SIGTERM)
        assert slot.wait(10) == 0
        database.dispose()
