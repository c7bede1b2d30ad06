"""`python -m benchmarks.queue_load`: what claims and heartbeats cost Postgres, and how many workers it carries.

On an embedded Postgres of its own, with the transactions of `glue.records` as workers run them. It prints Markdown.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import psycopg
from sqlalchemy import func, insert, make_url, select, update

from glue.plans.model_glue import stages_at_submission
from glue.records import leases, workers
from glue.records.database import Database
from glue.records.jobs import create_job
from glue.records.leases import Claim, WorkerIdentity
from glue.records.measures import measure
from glue.records.schema import upgrade
from glue.records.tables import Unit, Worker, fence_sequence
from glue.specs.job import JobSpec, ResolvedModel
from glue.specs.plan import StagePlan, UnitOutcome, UnitPlan, WorkerClass
from glue.specs.suite import SuiteSpec, TaskSpec
from glue.specs.zoo import MemberSpec, ZooSpec
from workers.embedded.postgres import PostgresServer

Value = TypeVar("Value")
# Owner, unit, token.
Lease = tuple[str, str, int]

LEASE = timedelta(seconds=30)
BEATS_PER_LEASE = 4
UNITS_PER_JOB = 100
TRANSACTIONS = ("claim", "claim of nothing", "heartbeat", "worker's row", "complete", "measure")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1000, 10000], help="simulated fleets")
    parser.add_argument("--seconds", type=float, default=20, help="how long each fleet beats")
    parser.add_argument("--clients", type=int, default=4, help="processes that act for the fleet")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        server = PostgresServer(Path(home))
        server.start()
        try:
            report(server.url, given.workers, given.seconds, given.clients)
        finally:
            server.stop()


def report(url: str, fleets: Sequence[int], seconds: float, clients: int) -> None:
    """All tables, as Markdown."""
    upgrade(url)
    database = Database(url, pool_size=2)
    print("| transaction | median ms | 95 % ms | a second, one connection |\n|---|---|---|---|")
    for name, times in costs(database).items():
        median, high = statistics.median(times), sorted(times)[int(0.95 * len(times))]
        print(f"| {name} | {1e3 * median:.2f} | {1e3 * high:.2f} | {len(times) / sum(times):.0f} |")
    print("\n| workers | beats a second wanted | carried | late beats | server CPU, cores |\n|---|---|---|---|---|")
    for size in fleets:
        print(fleet_row(database, url, size, seconds, clients))
    database.dispose()


def costs(database: Database) -> dict[str, list[float]]:
    """Seconds of every transaction of a worker's day, with 2,000 units in the queue."""
    fill(database, 2000)
    identity = WorkerIdentity("wrk_bench", ("cpu",), 10**12)
    with database.transaction() as session:
        workers.register_worker(session, identity)
    times: dict[str, list[float]] = {name: [] for name in TRANSACTIONS}
    for _ in range(400):
        claim = timed(times["claim"], partial(one_claim, database, identity))
        assert claim is not None
        timed(times["heartbeat"], partial(beat, database, (identity.id, claim.unit.unit_id, claim.token)))
        timed(times["worker's row"], partial(beat_row, database, identity.id))
        timed(times["complete"], partial(finish, database, claim))
    idle = WorkerIdentity("wrk_idle", ("hub",), 10**12)
    for _ in range(200):
        timed(times["claim of nothing"], partial(one_claim, database, idle))
    for _ in range(20):
        timed(times["measure"], partial(look, database))
    return times


def fleet_row(database: Database, url: str, size: int, seconds: float, clients: int) -> str:
    """One line: the fleet holds a unit each and beats at its own pace, through so many client processes."""
    fleet = lease_all(database, size)
    wanted = size * BEATS_PER_LEASE / LEASE.total_seconds()
    with ProcessPoolExecutor(clients, get_context("spawn")) as pool:
        acting = [pool.submit(beat_on, url, fleet[number::clients], seconds) for number in range(clients)]
        time.sleep(seconds)
        before = server_cpu(url)
        time.sleep(seconds / 2)
        cores = (server_cpu(url) - before) / (seconds / 2)
        counts = [each.result() for each in acting]
    carried = sum(done / passed for done, _, passed in counts)
    return f"| {size} | {wanted:.0f} | {carried:.0f} | {sum(late for _, late, _ in counts)} | {cores:.2f} |"


def beat_on(url: str, fleet: Sequence[Lease], seconds: float) -> tuple[int, int, float]:
    """Beat for a share of the fleet: how many beats, how many of them more than a second late, in how many seconds."""
    database, done, late = Database(url, pool_size=1), 0, 0
    pause = LEASE.total_seconds() / BEATS_PER_LEASE / len(fleet)
    began = due = time.monotonic()
    while time.monotonic() < began + 2 * seconds:
        held = fleet[done % len(fleet)]
        late += time.monotonic() > due + 1.0
        beat(database, held)
        beat_row(database, held[0])
        done, due = done + 1, due + pause
        time.sleep(max(0.0, due - time.monotonic()))
    passed = time.monotonic() - began
    database.dispose()
    return done, late, passed


def lease_all(database: Database, size: int) -> list[Lease]:
    """A fleet with a unit each, at once, on leases that outlast the measurement."""
    fill(database, size)
    free = select(Unit.id).where(Unit.state == "ready", Unit.kind == "bench").limit(size)
    values = {
        "state": "leased",
        "lease_owner": func.concat("wrk_", Unit.id),
        "lease_token": fence_sequence.next_value(),
        "lease_expires_at": func.now() + timedelta(hours=1),
    }
    taken = update(Unit).where(Unit.id.in_(free)).values(values)
    with database.transaction() as session:
        rows = session.execute(taken.returning(Unit.lease_owner, Unit.id, Unit.lease_token)).all()
        facts = {"host": "bench", "pid": 1, "classes": ["cpu"], "gpu_memory_bytes": 0, "version": "bench"}
        session.execute(insert(Worker), [{"id": owner, **facts} for owner, _, _ in rows])
    return [(str(owner), unit_id, int(token or 0)) for owner, unit_id, token in rows]


def fill(database: Database, units: int) -> None:
    """Jobs with so many ready units."""
    spec = job_spec()
    for _ in range(-(-units // UNITS_PER_JOB)):
        plans = tuple(UnitPlan("bench", {"number": number}, WorkerClass.CPU) for number in range(UNITS_PER_JOB))
        stages = [StagePlan("resolve", 0, ready=True, units=plans), *stages_at_submission(spec)[1:]]
        with database.transaction() as session:
            create_job(session, "bench", spec, stages, name=None, labels={}, priority=0, zoo_id=None)


def job_spec() -> JobSpec:
    """A valid spec over a zoo that lies nowhere."""
    suite = SuiteSpec(tasks=(TaskSpec(task="none"),))
    zoo = ZooSpec(name="none", members=(MemberSpec(name="a", source="/nowhere"),))
    models = (ResolvedModel(name="a", path="/nowhere", commit="0" * 64),)
    parts = {"clustering": {}, "search": {}, "mixture": {}, "output": {}}
    given = {"zoo": zoo, "models": models, "proxy": suite, "report": suite}
    return JobSpec.parse({"kind": "model_glue", "seed": 0, **parts, **given})


def one_claim(database: Database, identity: WorkerIdentity) -> Claim | None:
    """One claim, in its transaction."""
    with database.transaction() as session:
        return leases.claim(session, identity, LEASE)


def beat(database: Database, held: Lease) -> None:
    """One renewal of a lease."""
    with database.transaction() as session:
        leases.heartbeat(session, *held, LEASE, {"fraction": 0.5})


def beat_row(database: Database, worker_id: str) -> None:
    """One renewal of the worker's own row."""
    with database.transaction() as session:
        workers.beat_worker(session, worker_id)


def finish(database: Database, claim: Claim) -> None:
    """One completion."""
    with database.transaction() as session:
        leases.complete(session, claim.unit.unit_id, claim.token, UnitOutcome({"value": 1}), lambda *_: [])


def look(database: Database) -> None:
    """One scrape of the queue."""
    with database.transaction() as session:
        measure(session)


def timed(times: list[float], act: Callable[[], Value]) -> Value:
    """What `act` gives; its seconds are added."""
    began = time.perf_counter()
    value = act()
    times.append(time.perf_counter() - began)
    return value


def server_cpu(url: str) -> float:
    """Seconds that all processes of the server have used."""
    with psycopg.connect(
        make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    ) as connection:
        pids = [pid for (pid,) in connection.execute("SELECT pid FROM pg_stat_activity WHERE pid IS NOT NULL")]
    return sum(cpu_of(pid) for pid in pids)


def cpu_of(pid: int) -> float:
    """User and system seconds of one process; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / 100


if __name__ == "__main__":
    main()
