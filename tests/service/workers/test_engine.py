"""The engine process from the worker's side: answers, failures, deaths, interruptions, and what is left behind."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glue.specs.plan import UnitOutcome, UnitRequest
from tests.support.fake_pipeline import RUNNER
from tests.support.processes import all_gone
from workers.engine.process import (
    EngineDiedError,
    EngineStalledError,
    Interruption,
    UnitFailedError,
    UnitInterruptedError,
    WarmEngine,
    engine_environment,
)
from workers.settings import Settings

Interrupt = Callable[[], Interruption | None]


def request_of(payload: dict[str, Any], job_id: str = "job_1") -> UnitRequest:
    return UnitRequest("unit_1", job_id, "resolve", "", "test", 0, 0, 1, "digest", {}, payload)


def settings_of(home: Path, **changes: Any) -> Settings:
    given = {"database_url": "postgresql://nowhere/none", "GLUE_HOME": home, "GLUE_ENGINE_RUNNER": RUNNER}
    return Settings.model_validate(given | changes)


class Driver:
    """An engine with a shorter way to run a payload."""

    def __init__(self, settings: Settings) -> None:
        self.engine = WarmEngine(settings)
        self.progress: list[dict[str, Any]] = []

    def run(
        self,
        do: str,
        job_id: str = "job_1",
        interruption: Callable[[], Interruption | None] = lambda: None,
        **more: Any,
    ) -> UnitOutcome:
        return self.engine.run(request_of({"do": do, **more}, job_id), self.progress.append, interruption)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(settings_of(tmp_path))
    yield driver
    driver.engine.stop()


def gone(pid: int) -> bool:
    return all_gone([pid], 5.0)


def after(seconds: float, reason: Interruption) -> Interrupt:
    started = time.monotonic()
    return lambda: reason if time.monotonic() - started > seconds else None


def test_an_outcome_comes_back_with_the_progress_before_it(driver: Driver) -> None:
    outcome = driver.run("sleep", seconds=0.1)
    assert outcome.result["pid"] == driver.engine.pid
    assert driver.progress[0]["fraction"] < driver.progress[-1]["fraction"] <= 1
    assert driver.progress[-1]["message"].startswith("slept")


def test_a_request_and_an_answer_larger_than_the_pipe_go_through(driver: Driver) -> None:
    text = "ü" * 3_000_000
    assert driver.run("echo", text=text).result["text"] == text


def test_the_unit_gets_its_own_work_folder_and_the_device(driver: Driver, tmp_path: Path) -> None:
    result = driver.run("echo", text="").result
    assert result["work"] == str(tmp_path / "work" / "unit_1" / "digest")
    assert result["device"] == "cpu"


def test_the_engine_stays_warm_within_a_job_and_is_replaced_with_the_job(driver: Driver) -> None:
    first = driver.run("nothing").result["pid"]
    assert driver.run("nothing").result["pid"] == first
    assert driver.run("nothing", job_id="job_2").result["pid"] != first
    assert gone(first)


def test_the_engine_is_replaced_when_it_holds_too_much_memory(tmp_path: Path) -> None:
    driver = Driver(settings_of(tmp_path, GLUE_ENGINE_MEMORY_BYTES=200_000_000))
    small = driver.run("hold", bytes=1000).result["pid"]
    assert driver.run("hold", bytes=400_000_000).result["pid"] == small
    assert gone(small)
    assert driver.run("nothing").result["pid"] != small
    driver.engine.stop()


@pytest.mark.parametrize(
    ("do", "reason", "fault", "detail"),
    [
        ("user_error", "evaluation_failed", "user", "the suite is wrong"),
        ("bug", "internal", "internal", "ValueError: a bug of ours"),
        ("disk_full", "disk_full", "transient", "No space left on device"),
        ("memory", "out_of_memory", "transient", "more memory"),
        ("cpu_allocator", "out_of_memory", "transient", "DefaultCPUAllocator"),
        ("not_a_number", "internal", "internal", "not JSON compliant"),
    ],
)
def test_a_failure_says_what_and_whose_fault(driver: Driver, do: str, reason: str, fault: str, detail: str) -> None:
    with pytest.raises(UnitFailedError) as failed:
        driver.run(do)
    error = failed.value.error
    assert (error["reason"], error["fault"]) == (reason, fault)
    assert detail in error["detail"]
    assert "Traceback" not in error["detail"]
    assert driver.engine.pid is None
    assert driver.run("nothing").result["pid"]


@pytest.mark.parametrize(
    ("do", "how"),
    [
        ("kill_self", "killed by signal 9"),
        ("segfault", "killed by signal 11"),
        ("exit", "exit code 3"),
        ("close_pipe", "closed its pipe"),
    ],
)
def test_a_dead_engine_is_told_from_a_failed_unit(driver: Driver, do: str, how: str) -> None:
    with pytest.raises(EngineDiedError, match=how):
        driver.run(do)
    assert driver.run("nothing").result["pid"]


def test_an_engine_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    driver, path = Driver(settings_of(tmp_path, GLUE_STALL_SECONDS=1)), tmp_path / "pid"
    with pytest.raises(EngineStalledError, match="no progress for 1 s and was killed; its last: taking the lock"):
        driver.run("hang", path=str(path))
    assert gone(int(path.read_text()))
    assert driver.engine.pid is None
    assert driver.run("hang", path=str(path)).result["pid"]
    driver.engine.stop()


def test_a_long_unit_that_makes_progress_does_not_hang(tmp_path: Path) -> None:
    driver = Driver(settings_of(tmp_path, GLUE_STALL_SECONDS=1))
    assert driver.run("nothing").result["pid"]
    assert driver.run("sleep", seconds=2.5).result["pid"]
    driver.engine.stop()


def test_an_engine_that_died_while_idle_costs_no_unit(driver: Driver) -> None:
    pid = driver.run("nothing").result["pid"]
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    assert driver.run("nothing").result["pid"] != pid


@pytest.mark.parametrize("reason", list(Interruption))
def test_an_interruption_kills_the_engine_and_its_children(
    driver: Driver, tmp_path: Path, reason: Interruption
) -> None:
    path = tmp_path / "pid"
    with pytest.raises(UnitInterruptedError) as interrupted:
        driver.run("grandchild", path=str(path), seconds=60, interruption=after(1.0, reason))
    assert interrupted.value.reason is reason
    assert gone(int(path.read_text()))
    assert driver.engine.pid is None


def test_a_stopped_engine_can_be_interrupted_while_it_is_being_spoken_to(driver: Driver) -> None:
    pid = driver.run("nothing").result["pid"]
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(UnitInterruptedError):
        driver.run("echo", text="x" * 1_000_000, interruption=after(0.3, Interruption.LOST))
    assert gone(pid)


def test_the_children_of_a_crashed_engine_die_with_it(driver: Driver, tmp_path: Path) -> None:
    path = tmp_path / "pid"

    def kill_the_engine() -> None:
        while not path.exists() or not path.read_text():
            time.sleep(0.02)
        assert driver.engine.pid
        os.kill(driver.engine.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_the_engine)
    killer.start()
    with pytest.raises(EngineDiedError):
        driver.run("grandchild", path=str(path), seconds=60)
    killer.join()
    assert gone(int(path.read_text()))


def test_the_engine_dies_with_the_thread_that_started_it(tmp_path: Path) -> None:
    driver = Driver(settings_of(tmp_path))
    pids: list[int] = []
    thread = threading.Thread(target=lambda: pids.append(driver.run("nothing").result["pid"]))
    thread.start()
    thread.join()
    assert gone(pids[0])
    driver.engine.stop()


def test_what_libraries_print_goes_to_the_log_and_not_between_the_answers(
    driver: Driver, capfd: pytest.CaptureFixture[str]
) -> None:
    assert driver.run("print").result == {}
    logged = capfd.readouterr().err
    assert "prints to stdout" in logged
    assert "prints to stderr" in logged


def test_the_engine_sees_no_address_and_no_secret(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "DATABASE_URL": "postgresql://u:p@h/d",
        "REDIS_URL": "redis://:p@h/0",
        "HF_TOKEN": "t",
        "GLUE_API_KEY": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "PGPASSWORD": "p",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = set(driver.run("environment").result["names"])
    assert not names & set(secrets)
    assert {"PATH", "HF_HUB_OFFLINE"} <= names
    assert "HF_TOKEN" not in engine_environment({"HF_TOKEN": "t"})
