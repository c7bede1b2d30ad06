"""`python -m benchmarks.scaling`: how a search gains from more workers, and what a thousand would gain.

A random search whose candidates sleep, on servers and worker processes of its own: only the queue's cost is left.
Then a simulation with the measured costs of the transactions. It prints Markdown.
"""

import argparse
import heapq
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import func, select

from benchmarks.queue_load import costs
from benchmarks.scaling_stub import MEMBERS, WARM_UP
from glue.plans.model_glue import stages_at_submission
from glue.records.database import Database
from glue.records.jobs import create_job, request_cancel
from glue.records.schema import upgrade
from glue.records.tables import Stage, Unit, Worker
from glue.specs.job import JobSpec
from glue.specs.plan import StagePlan, UnitPlan, WorkerClass
from workers.app import worker_command
from workers.embedded.postgres import PostgresServer
from workers.embedded.valkey import ValkeyServer

OWNER = "bench"
# A stage's completions wait for each other; everything else of many workers runs side by side on so many cores.
SERVER_CORES = 2
BEATS_PER_SECOND = 4 / 30
START_SECONDS, ROUNDS_TO_WARM = 120, 3


def main() -> None:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--candidates", type=int, default=320)
    parser.add_argument("--fewer", type=int, default=320, help="at most so many candidates for each worker")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long a candidate sleeps")
    parser.add_argument("--simulate", type=int, nargs="*", default=[16, 100, 300, 1000])
    parser.add_argument("--candidate-seconds", type=float, nargs="*", default=[2.0, 10.0, 60.0])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, servers(Path(home)) as (database, environment):
        if given.workers:
            print("| workers | candidates | wall s | without any cost s | efficiency |\n|---|---|---|---|---|")
        for count in given.workers:
            candidates = min(given.candidates, given.fewer * count)
            with fleet(database, environment, count):
                wall = measured(database, candidates, count, given.seconds)
            ideal = given.seconds * -(-candidates // count)
            print(f"| {count} | {candidates} | {wall:.1f} | {ideal:.0f} | {ideal / wall:.3f} |", flush=True)
        if given.simulate:
            tables(database, given.simulate, given.candidate_seconds)
        database.dispose()


@contextmanager
def servers(home: Path) -> Iterator[tuple[Database, dict[str, str]]]:
    """A database, a broker and maintenance; with the environment of workers."""
    postgres, valkey = PostgresServer(home), ValkeyServer(home)
    postgres.start()
    valkey.start()
    upgrade(postgres.url)
    environment = {
        **os.environ,
        "DATABASE_URL": postgres.url,
        "REDIS_URL": valkey.url,
        "GLUE_HOME": str(home),
        "GLUE_ENGINE_RUNNER": "benchmarks.scaling_stub:run",
    }
    maintenance = subprocess.Popen(
        [sys.executable, "-m", "workers.maintenance"], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        yield Database(postgres.url, pool_size=2), environment
    finally:
        maintenance.terminate()
        maintenance.wait()
        valkey.stop()
        postgres.stop()


@contextmanager
def fleet(database: Database, environment: dict[str, str], count: int) -> Iterator[None]:
    """So many workers, up and registered."""
    classes = tuple(WorkerClass)
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen(worker_command(f"w{number}", classes), **quiet) for number in range(count)]  # type: ignore[call-overload]
    try:
        wait(lambda: one(database, select(func.count()).select_from(Worker)) == count)
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def measured(database: Database, candidates: int, count: int, seconds: float) -> float:
    """Seconds from the first generation's insertion to the last candidate's end, with every engine warm."""
    job_id = submit(database, candidates, count, seconds)
    wait(lambda: one(database, select(Stage.state).where(*search_of(job_id))) == "succeeded", 3600)
    first, last = select(func.min(Unit.created_at)), select(func.max(Unit.finished_at))
    of = (Unit.job_id == job_id, Unit.kind == "score.candidate", Stage.name == "search")
    begun, ended = (one(database, each.join(Stage, Stage.id == Unit.stage_id).where(*of)) for each in (first, last))
    with database.transaction() as session:
        request_cancel(session, OWNER, job_id)
    return float((ended - begun).total_seconds())  # type: ignore[operator]


def submit(database: Database, candidates: int, count: int, seconds: float) -> str:
    """A job with a random search in one generation, behind a stage that warms every worker's engine."""
    # A task's weight is the one number of the spec that nobody here looks at: it tells the stub how long to sleep.
    suite = {"tasks": [{"task": "none", "weight": seconds}]}
    search = {"strategy": "random", "generation": candidates, "budget": {"trials": candidates}}
    models = [{"name": name, "path": "/nowhere", "commit": "0"} for name in MEMBERS]
    zoo = {"name": "none", "members": [{"name": name, "source": "/nowhere"} for name in MEMBERS]}
    parts = {"clustering": {}, "mixture": {}, "output": {}, "zoo": zoo, "models": models, "search": search}
    # Another seed draws other candidates, so that no score is known already.
    seed = secrets.randbelow(2**31)
    spec = JobSpec.parse({"kind": "model_glue", "seed": seed, **parts, "proxy": suite, "report": suite})
    warm = tuple(UnitPlan(WARM_UP, {"number": number}, WorkerClass.CPU) for number in range(ROUNDS_TO_WARM * count))
    stages = [StagePlan("resolve", 0, ready=True, units=warm), *stages_at_submission(spec)[1:]]
    with database.transaction() as session:
        return create_job(session, OWNER, spec, stages).id


def search_of(job_id: str) -> tuple[object, ...]:
    """The conditions of the job's search."""
    return Stage.job_id == job_id, Stage.name == "search"


def one(database: Database, statement: object) -> object:
    """One value."""
    with database.transaction() as session:
        return session.scalar(statement)  # type: ignore[call-overload]


def wait(condition: object, seconds: float = START_SECONDS) -> None:
    """Until it holds.

    Raises:
        TimeoutError: it does not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError("the workers do not come")
        time.sleep(0.2)


def tables(database: Database, fleets: Sequence[int], lengths: Sequence[float]) -> None:
    """The measured costs and the simulated efficiencies."""
    medians = {name: statistics.median(times) for name, times in costs(database).items()}
    print("\n| transaction | median ms |\n|---|---|")
    for name in ("claim", "complete", "heartbeat", "worker's row"):
        print(f"| {name} | {1e3 * medians[name]:.2f} |")
    print("\n| workers |" + "".join(f" candidates of {length:g} s |" for length in lengths))
    print("|---|" + "---|" * len(lengths))
    for size in fleets:
        print(f"| {size} |" + "".join(f" {simulated(size, length, medians):.3f} |" for length in lengths))


def simulated(size: int, seconds: float, cost: dict[str, float], rounds: int = 10) -> float:
    """The efficiency of `size` workers on one search of `rounds` candidates for each.

    Claims share the server's cores; completions of one stage come one after the other, because they lock it. What
    heartbeats take of the cores slows both. Every claim counts as behind all that came before it.
    """
    busy = min(0.95, size * BEATS_PER_SECOND * (cost["heartbeat"] + cost["worker's row"]) / SERVER_CORES)
    claim, complete = cost["claim"] / (1 - busy), cost["complete"] / (1 - busy)
    cores, stage_free = [0.0] * SERVER_CORES, 0.0
    waiting = [(0.0, number, "claim") for number in range(size)]
    left, end = rounds * size, 0.0
    while waiting:
        now, number, act = heapq.heappop(waiting)
        begin = max(now, heapq.heappop(cores), stage_free if act == "complete" else 0.0)
        done = begin + (complete if act == "complete" else claim)
        heapq.heappush(cores, done)
        if act == "complete":
            stage_free = end = done
            heapq.heappush(waiting, (done, number, "claim"))
        elif left:
            left -= 1
            heapq.heappush(waiting, (done + seconds, number, "complete"))
    return rounds * seconds / end


if __name__ == "__main__":
    main()
