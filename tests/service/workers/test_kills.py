"""Whatever dies, stops or hangs: the unit is run again by somebody, ends once, and nothing is left behind."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from glue.records.events import list_events
from glue.records.jobs import request_cancel
from glue.records.tables import Attempt, Unit
from glue.records.workers import list_workers, set_draining
from glue.specs.plan import WorkerClass
from tests.support.processes import all_gone
from tests.support.service import OWNER, Jobs, Processes


def start_a_waiting_unit(service: Processes, jobs: Jobs, flag: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A slot whose engine is in the middle of a unit that ends when `flag` exists."""
    slot = service.slot()
    job_id = jobs.submit({"do": "wait_for", "path": str(flag)})
    jobs.wait_for(lambda: jobs.states(job_id) == ["leased"] and len(service.engines()) == 1)
    return slot, job_id


def successes(jobs: Jobs, job_id: str) -> int:
    """How often the record says that the first unit succeeded."""
    unit_id = jobs.units(job_id)[0].id
    with jobs.database.transaction() as session:
        events = list_events(session, job_id, 0, 1000)
    return sum(event.type == "unit.succeeded" and event.unit_id == unit_id for event in events)


def workers(jobs: Jobs) -> list[int]:
    """The processes that are entered as workers."""
    with jobs.database.transaction() as session:
        return [worker.pid for worker in list_workers(session)]


def test_a_killed_engine_costs_one_attempt(alone: Processes, jobs: Jobs, tmp_path: Path) -> None:
    alone.maintenance()
    _, job_id = start_a_waiting_unit(alone, jobs, tmp_path / "flag")
    alone.engines()[0].kill()
    (tmp_path / "flag").touch()
    jobs.wait_for_status(job_id, "succeeded")
    assert jobs.attempts(job_id) == ["failed", "succeeded"]


def test_a_killed_worker_takes_its_engine_along_and_another_finishes(
    with_broker: Processes, jobs: Jobs, tmp_path: Path
) -> None:
    with_broker.maintenance()
    slot, job_id = start_a_waiting_unit(with_broker, jobs, tmp_path / "flag")
    engine = with_broker.engines()[0].pid
    slot.kill()
    assert all_gone([engine], 2.0)
    (tmp_path / "flag").touch()
    with_broker.slot("two")
    jobs.wait_for_status(job_id, "succeeded")
    assert jobs.attempts(job_id) == ["lost", "succeeded"]
    assert successes(jobs, job_id) == 1


@pytest.mark.parametrize("finished_meanwhile", [False, True])
def test_a_paused_worker_is_fenced_and_goes_on_with_other_work(
    alone: Processes, jobs: Jobs, tmp_path: Path, finished_meanwhile: bool
) -> None:
    alone.maintenance()
    slot, job_id = start_a_waiting_unit(alone, jobs, tmp_path / "flag")
    engine = alone.engines()[0]
    slot.send_signal(signal.SIGSTOP)
    if not finished_meanwhile:
        engine.suspend()
    jobs.wait_for(lambda: jobs.states(job_id) == ["ready"])
    (tmp_path / "flag").touch()
    second = alone.slot("two")
    jobs.wait_for_status(job_id, "succeeded")
    finished = jobs.units(job_id)[0].finished_at

    slot.send_signal(signal.SIGCONT)
    assert all_gone([engine.pid], 5.0)
    assert jobs.attempts(job_id) == ["lost", "succeeded"]
    assert successes(jobs, job_id) == 1
    assert jobs.units(job_id)[0].finished_at == finished

    second.send_signal(signal.SIGTERM)
    second.wait(10)
    jobs.wait_for_status(jobs.submit({}), "succeeded")


def test_a_cancel_kills_the_running_unit(with_broker: Processes, jobs: Jobs, tmp_path: Path) -> None:
    with_broker.maintenance()
    slot = with_broker.slot()
    pid_file = tmp_path / "pid"
    job_id = jobs.submit({"do": "grandchild", "path": str(pid_file), "seconds": 60})
    jobs.wait_for(lambda: pid_file.exists() and bool(pid_file.read_text()))
    with jobs.database.transaction() as session:
        assert request_cancel(session, OWNER, job_id).status == "cancelling"
    jobs.wait_for_status(job_id, "cancelled", seconds=3.0)
    assert all_gone([int(pid_file.read_text())], 2.0)
    assert jobs.states(job_id) == ["cancelled"]

    assert slot.poll() is None
    jobs.wait_for_status(jobs.submit({}), "succeeded")


def test_a_drained_worker_gives_its_unit_back_and_claims_nothing(alone: Processes, jobs: Jobs, tmp_path: Path) -> None:
    slot, job_id = start_a_waiting_unit(alone, jobs, tmp_path / "flag")
    jobs.wait_for(lambda: workers(jobs) != [])
    with jobs.database.transaction() as session:
        set_draining(session, list_workers(session)[0].id)
    jobs.wait_for(lambda: jobs.states(job_id) == ["ready"])
    (tmp_path / "flag").touch()
    time.sleep(1.0)
    [unit] = jobs.units(job_id)
    assert (unit.state, unit.attempts) == ("ready", 0)
    assert slot.poll() is None


def test_a_unit_that_ends_while_draining_is_kept(alone: Processes, jobs: Jobs, tmp_path: Path) -> None:
    alone.environment["GLUE_DRAIN_SECONDS"] = "20"
    slot, job_id = start_a_waiting_unit(alone, jobs, tmp_path / "flag")
    slot.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    (tmp_path / "flag").touch()
    assert slot.wait(10) == 0
    assert jobs.states(job_id) == ["succeeded"]


def test_a_unit_that_kills_its_engine_ends_failed_and_others_go_on(alone: Processes, jobs: Jobs) -> None:
    alone.maintenance()
    alone.slot()
    poison = jobs.submit({"do": "kill_self"}, priority=50)
    others = [jobs.submit({}) for _ in range(3)]
    for other in others:
        jobs.wait_for_status(other, "succeeded")
    job = jobs.wait_for_status(poison, "failed", seconds=60)
    assert job.error
    assert job.error["reason"] == "worker_lost"
    assert "signal 9" in job.error["detail"]
    assert jobs.attempts(poison) == ["failed"] * 3


def test_a_unit_that_kills_its_worker_ends_failed_and_others_go_on(alone: Processes, jobs: Jobs) -> None:
    alone.maintenance()
    poison = jobs.submit({"do": "kill_worker"}, priority=50)
    other = jobs.submit({})
    for number in range(3):
        # As a supervisor would: another slot when one has died.
        assert alone.slot(f"slot-{number}").wait(30) == -signal.SIGKILL
    jobs.wait_for_status(poison, "failed")
    assert jobs.attempts(poison) == ["lost"] * 3
    alone.slot("last")
    jobs.wait_for_status(other, "succeeded")


def test_what_cannot_be_stored_fails_the_unit_and_not_the_slot(alone: Processes, jobs: Jobs) -> None:
    alone.maintenance()
    alone.slot()
    bad = jobs.submit({"do": "not_storable"})
    jobs.wait_for(lambda: jobs.units(bad)[0].error is not None)
    error = jobs.units(bad)[0].error
    assert error
    assert error["reason"] == "internal"
    jobs.wait_for_status(jobs.submit({}), "succeeded")


def test_a_users_mistake_fails_the_job_at_once(alone: Processes, jobs: Jobs) -> None:
    alone.slot()
    job_id = jobs.submit({"do": "user_error"})
    job = jobs.wait_for_status(job_id, "failed")
    assert job.error
    assert job.error["reason"] == "evaluation_failed"
    assert jobs.attempts(job_id) == ["failed"]


def test_progress_reaches_the_record(alone: Processes, jobs: Jobs) -> None:
    alone.slot()
    job_id = jobs.submit({"do": "sleep", "seconds": 3})
    jobs.wait_for(lambda: (jobs.units(job_id)[0].progress or {}).get("fraction", 0) > 0)
    progress = jobs.units(job_id)[0].progress
    assert progress
    assert progress["message"].startswith("slept")


def test_a_worker_is_listed_while_it_lives(alone: Processes, jobs: Jobs) -> None:
    slot = alone.slot()
    jobs.wait_for(lambda: len(workers(jobs)) == 1)
    slot.send_signal(signal.SIGTERM)
    assert slot.wait(10) == 0
    assert workers(jobs) == []


def test_several_slots_run_every_unit_once(with_broker: Processes, jobs: Jobs, tmp_path: Path) -> None:
    log = tmp_path / "runs"
    job_id = jobs.submit(*({"do": "sleep", "seconds": 0.2, "log": str(log), "name": str(n)} for n in range(20)))
    with_broker.maintenance()
    for name in ("one", "two", "three"):
        with_broker.slot(name)
    jobs.wait_for_status(job_id, "succeeded", seconds=60)
    runs = [line.split() for line in log.read_text().splitlines()]
    assert sorted(int(name) for name, _ in runs) == list(range(20))
    assert len({pid for _, pid in runs}) > 1


def test_a_slot_serves_its_classes_only(alone: Processes, jobs: Jobs) -> None:
    alone.slot(classes=[WorkerClass.CPU])
    hub = jobs.submit({}, worker_class=WorkerClass.HUB)
    cpu = jobs.submit({})
    jobs.wait_for(lambda: jobs.states(cpu) == ["succeeded"])
    assert jobs.states(hub) == ["ready"]


def test_every_claim_has_a_larger_token(alone: Processes, jobs: Jobs, tmp_path: Path) -> None:
    alone.maintenance()
    slots = [alone.slot(f"slot-{number}") for number in range(2)]
    job_id = jobs.submit(*({"do": "sleep", "seconds": 0.3} for _ in range(12)))
    for victim in slots:
        jobs.wait_for(lambda: "leased" in jobs.states(job_id))
        os.kill(victim.pid, signal.SIGKILL)
        alone.slot(f"after-{victim.pid}")
    jobs.wait_for_status(job_id, "succeeded", seconds=60)
    with jobs.database.transaction() as session:
        rows = session.execute(
            select(Attempt.unit_id, Attempt.token, Attempt.outcome)
            .join(Unit, Unit.id == Attempt.unit_id)
            .where(Unit.job_id == job_id)
            .order_by(Attempt.token)
        ).all()
    last = {row.unit_id: row.outcome for row in rows}
    assert set(last.values()) == {"succeeded"}
    assert sum(row.outcome == "succeeded" for row in rows) == len(last)
