"""A service for tests: jobs of deeds (`tests.support.fake_pipeline`), slots and maintenance as real processes."""

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select

from glue.plans.model_glue import stages_at_submission
from glue.records.database import Database
from glue.records.jobs import UnitView, create_job, list_units
from glue.records.tables import Attempt, Job
from glue.specs.job import JobSpec, ResolvedModel
from glue.specs.plan import StagePlan, UnitPlan, WorkerClass
from glue.specs.suite import SuiteSpec, TaskSpec
from glue.specs.zoo import MemberSpec, ZooSpec
from tests.support.fake_pipeline import MEMBER, RUNNER
from tests.support.processes import all_gone
from workers.app import worker_command
from workers.embedded.process import wait_for

OWNER = "tester"
CLASSES = tuple(WorkerClass)

# Everything within seconds; a lease long enough for two noisy cores.
FAST = {
    "GLUE_LEASE_SECONDS": "2",
    "GLUE_REAP_SECONDS": "0.2",
    "GLUE_POLL_SECONDS": "0.3",
    "GLUE_REPUBLISH_SECONDS": "1",
    "GLUE_DRAIN_SECONDS": "0.5",
    "GLUE_BACKOFF_SECONDS": "0.2",
    "GLUE_ENGINE_RUNNER": RUNNER,
}


def job_spec(seed: int = 0) -> JobSpec:
    """A valid spec over a zoo of one member that lies nowhere."""
    suite = SuiteSpec(tasks=(TaskSpec(task="none"),))
    request = {"kind": "model_glue", "seed": seed, "clustering": {}, "search": {}, "mixture": {}, "output": {}}
    zoo = ZooSpec(name="none", members=(MemberSpec(name=MEMBER, source="/nowhere"),))
    models = (ResolvedModel(name=MEMBER, path="/nowhere", commit="0" * 64),)
    return JobSpec.parse({**request, "zoo": zoo, "models": models, "proxy": suite, "report": suite})


class Jobs:
    """Jobs in one database, as a test submits and watches them."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def submit(
        self, *deeds: dict[str, Any], worker_class: WorkerClass = WorkerClass.CPU, owner: str = OWNER, **more: Any
    ) -> str:
        """A job whose first stage does these deeds, one unit each; the later stages follow by themselves."""
        spec = job_spec()
        units = tuple(UnitPlan("test", deed, worker_class) for deed in deeds)
        stages = [StagePlan("resolve", 0, ready=True, units=units), *stages_at_submission(spec)[1:]]
        with self.database.transaction() as session:
            return create_job(session, owner, spec, stages, **more).id

    def job(self, job_id: str) -> Job:
        """The job as it is now."""
        with self.database.transaction() as session:
            return session.get_one(Job, job_id)

    def units(self, job_id: str, stage: str = "resolve") -> list[UnitView]:
        """The units of the stage in order, without its advances."""
        with self.database.transaction() as session:
            found = list_units(session, job_id, stage=stage, limit=1000)
        return sorted((unit for unit in found if unit.position >= 0), key=lambda unit: unit.position)

    def attempts(self, job_id: str) -> list[str | None]:
        """How the attempts of the first stage's first unit ended, in order of their tokens."""
        unit_id = self.units(job_id)[0].id
        statement = select(Attempt.outcome).where(Attempt.unit_id == unit_id).order_by(Attempt.token)
        with self.database.transaction() as session:
            return list(session.scalars(statement))

    def states(self, job_id: str) -> list[str]:
        """The states of the first stage's units."""
        return [unit.state for unit in self.units(job_id)]

    def wait_for_status(self, job_id: str, status: str, seconds: float = 30.0) -> Job:
        """The job, once it has this status."""
        self.wait_for(lambda: self.job(job_id).status == status, seconds)
        return self.job(job_id)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        """Return when the condition holds, fail when it does not within `seconds`."""
        assert wait_for(condition, seconds), f"it did not come true within {seconds} s"


class Processes:
    """The processes of one test, all marked, so that whatever they leave behind is found."""

    def __init__(self, home: Path, database_url: str, redis_url: str = "", **settings: str) -> None:
        # The marker passes into the engine, because names of Python's own variables do.
        self._marker = ("PYTHON_TEST_MARK", secrets.token_hex(8))
        self.logs = home / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        given = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "GLUE_HOME": str(home)}
        self.environment = {**os.environ, **FAST, **given, **settings, self._marker[0]: self._marker[1]}
        self._started: list[subprocess.Popen[bytes]] = []

    def slot(
        self, name: str = "one", classes: Sequence[WorkerClass] = CLASSES, **settings: str
    ) -> subprocess.Popen[bytes]:
        """One slot: a Celery worker if there is a broker."""
        return self.start(name, worker_command(name, classes), **settings)

    def maintenance(self, name: str = "maintenance") -> subprocess.Popen[bytes]:
        """A dispatcher and reaper."""
        return self.start(name, [sys.executable, "-m", "workers.maintenance"])

    def start(self, name: str, command: Sequence[str], **settings: str) -> subprocess.Popen[bytes]:
        """Any process of the test; what it says is in `logs/<name>.log`."""
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, env=self.environment | settings, stdout=log, stderr=log)
        self._started.append(process)
        return process

    def log(self, name: str) -> str:
        """What the process of that name has said."""
        return (self.logs / f"{name}.log").read_text(errors="replace")

    def alive(self) -> list[psutil.Process]:
        """Every process that carries the mark: those that were started, and all that descends from them."""
        return [process for process in psutil.process_iter() if self._is_marked(process)]

    def engines(self) -> list[psutil.Process]:
        """The engines among them."""
        return [process for process in self.alive() if "workers.engine.main" in process.cmdline()]

    def close(self) -> None:
        """SIGKILL what was started; what descends from it must end by itself."""
        for process in self._started:
            process.kill()
            process.wait()
        left = [process.pid for process in self.alive()]
        try:
            assert all_gone(left), f"left behind: {[process.cmdline() for process in self.alive()]}"
        finally:
            for process in self.alive():
                process.kill()

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            marked = process.environ().get(self._marker[0]) == self._marker[1]
            return marked and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False


@contextmanager
def processes(home: Path, database_url: str, redis_url: str = "", **settings: str) -> Iterator[Processes]:
    """Processes that are gone, with all that descends from them, when the block ends."""
    started = Processes(home, database_url, redis_url, **settings)
    try:
        yield started
    finally:
        started.close()
