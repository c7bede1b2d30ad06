"""The same search on one, two and five workers, with SIGKILL at random moments: the same candidates, scores, digest."""

import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from tests.support.in_process import InProcess
from tests.support.main_job import FINISHED, JOB_SECONDS, QUICK_RECOVERY, get, job, submit
from tests.support.processes import family, kill
from tests.support.services import Service, service
from tests.support.tiny_zoo import build_tiny_zoo, job_spec

SEARCH = {"strategy": "evolutionary", "population": 4, "budget": {"trials": 12}}
# Fewer than would use up any unit's budget of crashes; the pauses leave room for recovery.
KILLS, SHORTEST_PAUSE, LONGEST_PAUSE = 6, 0.5, 4.0

Trials = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def expected(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trials, str]:
    run = InProcess(job_spec(zoo, search=SEARCH), tmp_path_factory.mktemp("home"))
    digest = f"sha256:{run.run()['digest']}"
    return {each.family: each.result["trials"] for each in run.outcomes if each.name == "search"}, digest


def one_worker(running: Service, random: Random) -> int:
    return random.choice([pid for name, pid in sorted(running.pids.items()) if name.startswith("worker-")])


def one_engine(running: Service, random: Random) -> int:
    engines = [pid for pid in family(one_worker(running, random)) if "workers.engine.main" in " ".join(command(pid))]
    return random.choice(engines)


def one_server(running: Service, random: Random) -> int:
    return running.pids[random.choice(["postgres", "valkey", "maintenance", "api"])]


def command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return []


VICTIMS: list[Callable[[Service, Random], int]] = [one_worker, one_worker, one_engine, one_engine, one_server]


def strike(running: Service, random: Random) -> bool:
    """Kill something; false if it was not there at this moment."""
    try:
        kill(random.choice(VICTIMS)(running, random))
    except (psutil.NoSuchProcess, IndexError, KeyError):
        return False
    return True


def disturbed(running: Service, job_id: str, seed: int) -> dict[str, Any]:
    """The job when it has ended, after kills at moments that the seed chooses."""
    random, kills, deadline = Random(seed), 0, time.monotonic() + JOB_SECONDS
    while (found := job(running, job_id))["status"] not in FINISHED:
        assert time.monotonic() < deadline, found
        time.sleep(random.uniform(SHORTEST_PAUSE, LONGEST_PAUSE))
        if kills < KILLS:
            kills += strike(running, random)
    assert kills > 0
    return found


def check(workers: int, seed: int, zoo: Path, expected: tuple[Trials, str], home: Path) -> None:
    options = ("--workers", str(workers), "--root", str(zoo))
    with service(home, *options, environment=QUICK_RECOVERY) as running:
        ended = disturbed(running, submit(running, zoo, search=SEARCH), seed)
        assert ended["status"] == "succeeded", ended["error"]
        with running.client as client:
            report = get(client, f"/v1/jobs/{ended['id']}/report")
    trials = {family["name"]: family["trials"] for family in report["families"]}
    assert trials == expected[0]
    assert ended["result"]["digest"] == expected[1]


def test_two_workers_under_kills_give_what_one_process_gives(
    zoo: Path, expected: tuple[Trials, str], tmp_path: Path
) -> None:
    check(2, 1, zoo, expected, tmp_path / "home")


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_fleet_under_kills_gives_what_one_process_gives(
    workers: int, seed: int, zoo: Path, expected: tuple[Trials, str], tmp_path: Path
) -> None:
    check(workers, 10 * workers + seed, zoo, expected, tmp_path / "home")
