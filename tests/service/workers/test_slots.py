"""Slots as real processes: work gets done, with and without a broker, and a stop gives it back."""

import signal
import time
from pathlib import Path

import pytest

from tests.support.service import Jobs, Processes


@pytest.fixture(params=["alone", "with_broker"])
def service(request: pytest.FixtureRequest) -> Processes:
    """With and without a broker."""
    started: Processes = request.getfixturevalue(request.param)
    return started


def test_a_job_runs_to_its_end(service: Processes, jobs: Jobs) -> None:
    service.maintenance()
    service.slot()
    job_id = jobs.submit({}, {}, {})
    job = jobs.wait_for_status(job_id, "succeeded")
    assert job.result
    assert jobs.states(job_id) == ["succeeded"] * 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_gives_the_unit_back_without_an_attempt(
    service: Processes, jobs: Jobs, tmp_path: Path, number: signal.Signals
) -> None:
    slot = service.slot()
    flag = tmp_path / "flag"
    job_id = jobs.submit({"do": "wait_for", "path": str(flag)})
    jobs.wait_for(lambda: jobs.states(job_id) == ["leased"])
    jobs.wait_for(lambda: len(service.engines()) == 1)
    started = time.monotonic()
    slot.send_signal(number)
    assert slot.wait(10) in (0, 1)
    assert time.monotonic() - started < 5
    [unit] = jobs.units(job_id)
    assert (unit.state, unit.attempts, unit.crashes) == ("ready", 0, 0)
    assert service.alive() == []

    flag.touch()
    service.slot("two")
    jobs.wait_for_status(job_id, "succeeded")
    assert jobs.units(job_id)[0].attempts == 1
