"""SIGKILL, in turn, of every part of the service in the middle of the job: the result is that of an undisturbed run."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.in_process import InProcess
from tests.support.main_job import QUICK_RECOVERY, submit, wait, wait_for_stage
from tests.support.processes import family, is_running, kill
from tests.support.services import Service, service
from tests.support.tiny_zoo import build_tiny_zoo, job_spec
from workers.embedded.process import wait_for


def engines(running: Service) -> list[psutil.Process]:
    """The engine processes of all workers."""
    workers = [pid for name, pid in running.pids.items() if name.startswith("worker-")]
    return [
        psutil.Process(pid) for worker in workers for pid in family(worker) if "workers.engine.main" in command_of(pid)
    ]


def command_of(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline()[1:])
    except psutil.NoSuchProcess:
        return ""


def is_whole(running: Service) -> bool:
    """Whether every part runs, as a supervisor leaves it some time after a fault."""
    return running.is_ready() and all(is_running(pid) for pid in running.pids.values())


def kill_one_worker(running: Service) -> None:
    kill(running.pids["worker-1"])


def kill_all_workers(running: Service) -> None:
    for name, pid in running.pids.items():
        if name.startswith("worker-"):
            kill(pid)


def kill_an_engine(running: Service) -> None:
    assert wait_for(lambda: bool(engines(running)), 30)
    engines(running)[0].kill()


def kill_part(name: str) -> Callable[[Service], None]:
    return lambda running: kill(running.pids[name])


FAULTS: dict[str, tuple[str, Callable[[Service], None]]] = {
    "a worker": ("search", kill_one_worker),
    "all workers": ("baselines", kill_all_workers),
    "an engine": ("search", kill_an_engine),
    "valkey": ("search", kill_part("valkey")),
    "postgres": ("search", kill_part("postgres")),
    "the api": ("merge", kill_part("api")),
    "maintenance": ("similarity", kill_part("maintenance")),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def expected(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sha256:{InProcess(job_spec(zoo), tmp_path_factory.mktemp('home')).run()['digest']}"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_killed_part_costs_time_and_nothing_else(fault: str, zoo: Path, expected: str, tmp_path: Path) -> None:
    stage, strike = FAULTS[fault]
    options = ("--workers", "2", "--root", str(zoo))
    with service(tmp_path / "home", *options, environment=QUICK_RECOVERY) as running:
        job_id = submit(running, zoo)
        wait_for_stage(running, job_id, stage)
        strike(running)
        ended = wait(running, job_id)
    assert ended["status"] == "succeeded", ended["error"]
    assert ended["result"]["digest"] == expected


def test_every_part_killed_one_after_the_other_in_one_job(zoo: Path, expected: str, tmp_path: Path) -> None:
    options = ("--workers", "2", "--root", str(zoo))
    with service(tmp_path / "home", *options, environment=QUICK_RECOVERY) as running:
        job_id = submit(running, zoo)
        for stage, strike in FAULTS.values():
            wait_for_stage(running, job_id, stage)
            assert wait_for(lambda: is_whole(running), 60)
            strike(running)
        ended = wait(running, job_id)
    assert ended["status"] == "succeeded", ended["error"]
    assert ended["result"]["digest"] == expected
