"""A small chain of stages for tests of the records: `resolve`, then `search` for each of two families, then `join`.

It has what the real chain has: a stage that begins with units, stages that begin with an advance and run for two
generations, and a stage that waits for all families.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import update

from glue.records.database import CLOCK, Database
from glue.records.jobs import create_job, get_job
from glue.records.leases import Backoff, Claim, WorkerIdentity, claim, complete
from glue.records.tables import Unit
from glue.specs.errors import DiskFullError, GlueError, InvalidInputError
from glue.specs.job import JobSpec
from glue.specs.plan import ADVANCE, StageOutcome, StagePlan, UnitOutcome, UnitPlan, UnitRequest, WorkerClass

OWNER = "ada"
FAMILIES = ("a", "b")
LEASE = timedelta(seconds=30)
WORKER = WorkerIdentity("wrk_one", ("cpu", "gpu", "hub"), 2**40)
OTHER_WORKER = WorkerIdentity("wrk_two", ("cpu", "gpu", "hub"), 2**40)

USER_ERROR = InvalidInputError("the task has no items").as_json()
TRANSIENT_ERROR = DiskFullError("the disk is full").as_json()
INTERNAL_ERROR = GlueError("a bug").as_json()
AT_ONCE = Backoff(timedelta(0), timedelta(0))


def job_spec(seed: int = 7) -> JobSpec:
    """A complete spec; nothing here reads what it points to."""
    suite = {"tasks": [{"task": "sums"}]}
    members = [{"name": name, "source": f"/models/{name}"} for name in ("one", "two")]
    return JobSpec.parse(
        {
            "kind": "model_glue",
            "seed": seed,
            "zoo": {"name": "small", "members": members},
            "models": [{"name": each["name"], "path": each["source"], "commit": "c"} for each in members],
            "clustering": {},
            "search": {},
            "mixture": {},
            "output": {},
            "proxy": suite,
            "report": suite,
        }
    )


def inspect_unit(name: str) -> UnitPlan:
    """A first unit of `resolve`."""
    return UnitPlan("resolve.inspect", {"name": name}, WorkerClass.CPU)


def candidate(name: str, gpu_memory_bytes: int = 0) -> UnitPlan:
    """A unit of `search`."""
    return UnitPlan("score.candidate", {"name": name}, WorkerClass.GPU, gpu_memory_bytes)


def at_submission() -> tuple[StagePlan, ...]:
    """What is known before anything ran."""
    first = (inspect_unit("one"), inspect_unit("two"))
    return (StagePlan("resolve", 0, ready=True, units=first), StagePlan("join", 2))


def unlock(spec: JobSpec, outcomes: Sequence[StageOutcome]) -> tuple[StagePlan, ...]:
    """The stages that can start, like the real chain's: also those that run already."""
    done = {(outcome.name, outcome.family) for outcome in outcomes}
    if ("resolve", "") not in done:
        return ()
    searches = [("search", family) for family in FAMILIES]
    if all(search in done for search in searches):
        return () if ("join", "") in done else (StagePlan("join", 2, ready=True, units=(inspect_unit("all"),)),)
    return tuple(StagePlan("search", 1, family, ready=True) for name, family in searches if (name, family) not in done)


def outcome_of(request: UnitRequest) -> UnitOutcome:
    """What running the unit gives: a stage that began without units asks for two, every other advance finishes it."""
    if request.kind != ADVANCE:
        return UnitOutcome({"mean": 0.5, "values": [0.0, 1.0]})
    if request.stage != "resolve" and not request.units:
        return UnitOutcome(units=(candidate("left"), candidate("right")))
    return UnitOutcome({"of": request.stage, "units": len(request.units)}, finished=True)


def submit(database: Database, plans: Sequence[StagePlan] | None = None, **options: Any) -> str:
    """A new job; its id."""
    with database.transaction() as session:
        return create_job(session, OWNER, job_spec(), at_submission() if plans is None else plans, **options).id


def take(database: Database, worker: WorkerIdentity = WORKER, lease: timedelta = LEASE) -> Claim | None:
    """One claim in a transaction of its own."""
    with database.transaction() as session:
        return claim(session, worker, lease)


def must_take(database: Database, worker: WorkerIdentity = WORKER) -> Claim:
    """One claim where there has to be one."""
    claimed = take(database, worker)
    assert claimed is not None
    return claimed


def finish(database: Database, claimed: Claim, outcome: UnitOutcome | None = None) -> None:
    """Complete a claimed unit in a transaction of its own."""
    with database.transaction() as session:
        complete(session, claimed.unit.unit_id, claimed.token, outcome or outcome_of(claimed.unit), unlock)


def finish_all(database: Database, worker: WorkerIdentity = WORKER) -> list[UnitRequest]:
    """Claim and complete until there is nothing left; the units in the order of their claims."""
    done = []
    while (claimed := take(database, worker)) is not None:
        finish(database, claimed)
        done.append(claimed.unit)
    return done


def expire(database: Database, claimed: Claim) -> None:
    """Let the lease run out now."""
    with database.transaction() as session:
        past = CLOCK - timedelta(seconds=1)
        session.execute(update(Unit).where(Unit.lease_token == claimed.token).values(lease_expires_at=past))


def status_of(database: Database, job_id: str) -> str:
    """The job's status as its owner sees it."""
    with database.transaction() as session:
        return get_job(session, OWNER, job_id).status
