"""The five transactions of a worker's unit (claim, heartbeat, complete, fail, release) and the reaper's.

A unit belongs to the worker whose token it carries, and only while the lease has not expired by the database's
clock. Whoever comes later gets `LeaseLost` and must write nothing. Nothing here knows how a unit is run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Select, case, exists, select, update
from sqlalchemy.orm import Session

from glue.records.chain import (
    Unlock,
    close_generation,
    fail_job,
    finish_cancel,
    follow_advance,
    outcomes_of,
)
from glue.records.database import CLOCK, database_time
from glue.records.events import record_event
from glue.records.ids import new_id
from glue.records.locks import FRESH, Held, hold, lock_whole, read_stage
from glue.records.outbox import wake
from glue.records.tables import (
    ACTIVE,
    KNOWN_SPEC_VERSIONS,
    LIVE,
    Artifact,
    Attempt,
    Job,
    Stage,
    Unit,
    Worker,
    fence_sequence,
)
from glue.records.values import storable, summary_of
from glue.specs.errors import Fault, Reason
from glue.specs.plan import (
    ADVANCE,
    ADVANCE_POSITION,
    ArtifactPlan,
    FinishedUnit,
    UnitOutcome,
    UnitRequest,
)

# A candidate that cannot be scored is one failed trial of its search; any other failed unit fails its job.
TRIAL_STAGE, TRIAL_KIND = "search", "score.candidate"

_WORKER_LOST = {
    "reason": Reason.WORKER_LOST,
    "fault": Fault.INTERNAL,
    "detail": "the workers that ran this unit vanished, time and again",
    "problems": [],
}


@dataclass(frozen=True)
class WorkerIdentity:
    """What a worker is and can take: `gpu_memory_bytes` of device memory, units of these classes."""

    id: str
    classes: tuple[str, ...]
    gpu_memory_bytes: int = 0


@dataclass(frozen=True)
class Claim:
    """A unit that is now leased: what to run, whose it is, and the token that every later write has to show."""

    unit: UnitRequest
    owner: str
    token: int


@dataclass(frozen=True)
class Heartbeat:
    """What a worker learns: `alive` false means the lease is gone; `cancel` and `drain` ask it to stop soon.

    A lease is not renewed once its job is being cancelled or has ended: a worker that does not stop loses it. That
    of a paused job is: its unit runs to its end.
    """

    alive: bool
    cancel: bool
    drain: bool


@dataclass(frozen=True)
class Backoff:
    """How long a unit waits before it is tried again.

    After the n-th failure `transient` times 2 to the power n; after the n-th crash `lost` times n.
    """

    transient: timedelta = timedelta(seconds=2)
    lost: timedelta = timedelta(seconds=1)


DEFAULT_BACKOFF = Backoff()


def claim(session: Session, worker: WorkerIdentity, lease: timedelta) -> Claim | None:
    """Lease the best unit that this worker can run, or none.

    The best is of the job of highest priority, then the oldest job, then first in the order of the chain.
    """
    tried: list[str] = []
    while (best := session.execute(_claimable(worker, tried).limit(1)).first()) is not None:
        # A stage's lock must not be kept while another stage's is taken: the rollback gives it back.
        attempt = session.begin_nested()
        started = best.stage_state == "pending" and _start_stage(session, best.stage_id)
        unit = _take(session, worker, best.stage_id)
        # A pause that came between the look and the lock is seen now; the next one waits for the lock.
        if unit is not None and _is_active(session, unit.job_id):
            return _lease(session, unit, worker, lease, started)
        attempt.rollback()
        tried.append(best.stage_id)
    return None


def heartbeat(
    session: Session,
    worker_id: str,
    unit_id: str,
    token: int,
    lease: timedelta,
    progress: dict[str, Any] | None = None,
) -> Heartbeat:
    """Renew the lease, store the progress if there is any, and bring back what the worker has to know."""
    runs = select(Job.status.in_(LIVE)).where(Job.id == Unit.job_id).scalar_subquery()
    values: dict[str, Any] = {"lease_expires_at": case((runs, CLOCK + lease), else_=Unit.lease_expires_at)}
    if progress is not None:
        values["progress"] = storable(progress)
    held = (Unit.state == "leased", Unit.lease_token == token, Unit.lease_owner == worker_id)
    statement = update(Unit).where(Unit.id == unit_id, *held, Unit.lease_expires_at > CLOCK).values(**values)
    options = {"synchronize_session": False}
    runs_still = session.scalar(statement.returning(runs), execution_options=options)
    draining = session.scalar(select(Worker.draining).where(Worker.id == worker_id))
    return Heartbeat(alive=runs_still is not None, cancel=runs_still is False, drain=bool(draining))


def complete(session: Session, unit_id: str, token: int, outcome: UnitOutcome, unlock: Unlock) -> None:
    """Record what a unit's run gave, and what follows from it, all or nothing.

    `unlock` gets the job's spec and its finished stages and returns the stages that can start; it is called
    only when a stage ends. If the job was cancelled or has failed, the outcome is dropped and the unit is cancelled.

    Raises:
        LeaseLost: the lease is not held; nothing was written.
    """
    is_advance = session.scalar(select(Unit.kind).where(Unit.id == unit_id)) == ADVANCE
    held = hold(session, unit_id, token, whole=is_advance)
    if held.job.status not in LIVE:
        return _abandon(session, held, "cancelled")
    unit, stage, job = held.unit, held.stage, held.job
    _end_attempt(session, held, "succeeded", "succeeded")
    _mark_degraded(session, held, outcome)
    unit.result, unit.summary, unit.error = outcome.result, summary_of(outcome.result), None
    if outcome.artifact is not None:
        session.add(_artifact(held, outcome.artifact))
    if is_advance:
        return follow_advance(session, job, stage, outcome, unlock)
    _unit_event(session, held, "unit.succeeded", {"summary": unit.summary})
    return close_generation(session, job, stage)


def fail(
    session: Session,
    unit_id: str,
    token: int,
    error: dict[str, Any],
    *,
    retry: bool,
    backoff: Backoff = DEFAULT_BACKOFF,
) -> None:
    """Record that a unit's run failed: it is tried again after a while, or it is failed for good.

    It is for good if `retry` is false, if the user is at fault, or if `max_attempts` runs ended so. Crashes have
    a budget of their own and do not count here. `error` is a `GlueError` as JSON.

    Raises:
        LeaseLost: the lease is not held; nothing was written.
    """
    held = hold(session, unit_id, token, whole=True)
    if held.job.status not in LIVE:
        return _abandon(session, held, "cancelled")
    error = storable(error)
    failures = held.unit.attempts - held.unit.crashes
    if not retry or error["fault"] == Fault.USER or failures >= held.unit.max_attempts:
        return _fail_unit(session, held, error, "failed")
    return _retry(session, held, error, "failed", "unit.retried", backoff.transient * 2**failures)


def release(session: Session, unit_id: str, token: int, *, delay: timedelta = timedelta(0)) -> None:
    """Give a unit back unfinished, for example while draining. It costs no attempt.

    Raises:
        LeaseLost: the lease is not held; nothing was written.
    """
    held = hold(session, unit_id, token, whole=False)
    if held.job.status not in LIVE:
        return _abandon(session, held, "cancelled")
    held.unit.attempts -= 1
    return _requeue(session, held, "released", None, delay)


def reap(session: Session, max_units: int = 100, backoff: Backoff = DEFAULT_BACKOFF) -> int:
    """Take expired leases back and return their number; a unit that was lost `max_crashes` times is failed.

    Also ends the jobs that wait for their cancel and of which nothing is leased any more.
    """
    expired = (Unit.state == "leased", Unit.lease_expires_at <= CLOCK)
    oldest = select(Unit.id, Unit.job_id).where(*expired).order_by(Unit.lease_expires_at).limit(max_units)
    found = {row.id: row.job_id for row in session.execute(oldest)}
    jobs = lock_whole(session, {*found.values(), *session.scalars(_idle_cancels().limit(max_units))})
    statement = select(Unit).where(Unit.id.in_(list(found)), *expired).order_by(Unit.id)
    units = session.scalars(statement, execution_options=FRESH).all()
    for unit in units:
        _take_back(session, unit, jobs[unit.job_id], backoff)
    for job in jobs.values():
        finish_cancel(session, job)
    return len(units)


def _claimable(worker: WorkerIdentity, tried: Sequence[str]) -> Select[str, str]:
    return (
        select(Unit.stage_id, Stage.state.label("stage_state"))
        .select_from(Unit)
        .join(Stage, Stage.id == Unit.stage_id)
        .join(Job, Job.id == Unit.job_id)
        .where(Unit.state == "ready", Unit.not_before <= CLOCK, Unit.worker_class.in_(worker.classes))
        .where(Unit.gpu_memory_bytes <= worker.gpu_memory_bytes, Unit.stage_id.not_in(tried))
        .where(Job.status.in_(ACTIVE), Job.spec_version.in_(KNOWN_SPEC_VERSIONS))
        .order_by(Job.priority.desc(), Job.id, Stage.position, Unit.generation, Unit.position, Unit.id)
    )


def _start_stage(session: Session, stage_id: str) -> bool:
    # Comes before the unit's lock, as everywhere; of several first claims one finds the stage still pending.
    statement = update(Stage).where(Stage.id == stage_id, Stage.state == "pending")
    started = statement.values(state="running", started_at=CLOCK).returning(Stage.id)
    return session.scalar(started, execution_options={"synchronize_session": False}) is not None


def _take(session: Session, worker: WorkerIdentity, stage_id: str) -> Unit | None:
    statement = _claimable(worker, ()).with_only_columns(Unit).where(Unit.stage_id == stage_id).limit(1)
    locked = statement.with_for_update(of=Unit, key_share=True, skip_locked=True)
    return session.scalar(locked, execution_options=FRESH)


def _is_active(session: Session, job_id: str) -> bool:
    return session.scalar(select(Job.status).where(Job.id == job_id)) in ACTIVE


def _lease(session: Session, unit: Unit, worker: WorkerIdentity, lease: timedelta, started: bool) -> Claim:
    now = database_time(session)
    token: int = session.execute(select(fence_sequence.next_value())).scalar_one()
    unit.state, unit.attempts, unit.started_at, unit.progress = "leased", unit.attempts + 1, now, None
    unit.lease_owner, unit.lease_token, unit.lease_expires_at = worker.id, token, now + lease
    session.add(Attempt(token=token, unit_id=unit.id, worker=worker.id, started_at=now))
    stage = read_stage(session, unit)
    _start_job(session, unit.job_id)
    if started:
        record_event(session, unit.job_id, "stage.started", stage=stage)
    job = session.scalars(select(Job).where(Job.id == unit.job_id), execution_options=FRESH).one()
    return Claim(_request(session, job, stage, unit, token), job.owner, token)


def _start_job(session: Session, job_id: str) -> None:
    statement = update(Job).where(Job.id == job_id, Job.status == "queued").values(status="running", started_at=CLOCK)
    options = {"synchronize_session": False}
    if session.scalar(statement.returning(Job.id), execution_options=options) is not None:
        record_event(session, job_id, "job.started")


def _request(session: Session, job: Job, stage: Stage, unit: Unit, token: int) -> UnitRequest:
    return UnitRequest(
        unit_id=unit.id,
        job_id=job.id,
        stage=stage.name,
        family=stage.family,
        kind=unit.kind,
        generation=unit.generation,
        position=unit.position,
        token=token,
        digest=unit.digest,
        spec=job.spec,
        payload=unit.payload,
        outcomes=outcomes_of(session, job.id),
        units=_finished_units(session, stage) if unit.kind == ADVANCE else (),
        advances=_advances(session, stage) if unit.kind == ADVANCE else (),
    )


def _finished_units(session: Session, stage: Stage) -> tuple[FinishedUnit, ...]:
    columns = (Unit.generation, Unit.position, Unit.kind, Unit.payload, Unit.result, Unit.error)
    statement = select(*columns).where(Unit.stage_id == stage.id, Unit.position != ADVANCE_POSITION)
    return tuple(FinishedUnit(*row) for row in session.execute(statement.order_by(Unit.generation, Unit.position)))


def _advances(session: Session, stage: Stage) -> tuple[dict[str, Any], ...]:
    done = (Unit.stage_id == stage.id, Unit.position == ADVANCE_POSITION, Unit.state == "succeeded")
    results = session.scalars(select(Unit.result).where(*done).order_by(Unit.generation))
    return tuple(result or {} for result in results)


def _idle_cancels() -> Select[Any]:
    leased = exists().where(Unit.job_id == Job.id, Unit.state == "leased")
    return select(Job.id).where(Job.status == "cancelling", ~leased)


def _take_back(session: Session, unit: Unit, job: Job, backoff: Backoff) -> None:
    assert unit.lease_token is not None
    held = Held(unit.lease_token, unit, read_stage(session, unit), job)
    if job.status not in LIVE:
        return _abandon(session, held, "lost")
    unit.crashes += 1
    if unit.crashes >= unit.max_crashes:
        return _fail_unit(session, held, _WORKER_LOST, "lost")
    return _retry(session, held, _WORKER_LOST, "lost", "unit.lost", backoff.lost * unit.crashes)


def _abandon(session: Session, held: Held, outcome: str) -> None:
    """The job was cancelled or failed meanwhile: what its last workers bring no longer counts."""
    _end_attempt(session, held, "cancelled", outcome)
    finish_cancel(session, held.job)


def _fail_unit(session: Session, held: Held, error: dict[str, Any], outcome: str) -> None:
    _end_attempt(session, held, "failed", outcome, error)
    held.unit.error = error
    _unit_event(session, held, "unit.failed", {"error": error})
    if (held.stage.name, held.unit.kind) == (TRIAL_STAGE, TRIAL_KIND):
        return close_generation(session, held.job, held.stage)
    return fail_job(session, held.job, held.stage, error)


def _retry(session: Session, held: Held, error: dict[str, Any], outcome: str, event: str, delay: timedelta) -> None:
    held.unit.error = error
    _requeue(session, held, outcome, error, delay)
    _unit_event(session, held, event, {"error": error, "attempt": held.unit.attempts})


def _requeue(session: Session, held: Held, outcome: str, error: dict[str, Any] | None, delay: timedelta) -> None:
    _end_attempt(session, held, "ready", outcome, error)
    held.unit.finished_at, held.unit.not_before = None, database_time(session) + delay
    wake(session, [held.unit.worker_class], held.unit.not_before)


def _end_attempt(session: Session, held: Held, state: str, outcome: str, error: dict[str, Any] | None = None) -> None:
    now, unit = database_time(session), held.unit
    attempt = update(Attempt).where(Attempt.token == held.token, Attempt.ended_at.is_(None))
    session.execute(attempt.values(ended_at=now, outcome=outcome, error=error))
    unit.state, unit.finished_at = state, now
    unit.lease_owner = unit.lease_token = unit.lease_expires_at = None


def _unit_event(session: Session, held: Held, type_: str, data: dict[str, Any]) -> None:
    unit = held.unit
    place = {"kind": unit.kind, "position": unit.position, "generation": unit.generation}
    record_event(session, held.job.id, type_, place | data, stage=held.stage, unit=unit, token=held.token)


def _mark_degraded(session: Session, held: Held, outcome: UnitOutcome) -> None:
    """A unit that could not run as the spec says notes why; its job cannot be repeated to the bit."""
    reason = outcome.result.get("notes", {}).get("degraded")
    if reason:
        held.job.reproducible = False
        _unit_event(session, held, "job.not_reproducible", {"reason": reason})


def _artifact(held: Held, plan: ArtifactPlan) -> Artifact:
    return Artifact(
        id=new_id("art"),
        owner=held.job.owner,
        job_id=held.job.id,
        unit_id=held.unit.id,
        kind=plan.kind,
        digest=plan.digest,
        location=plan.location,
        manifest=plan.manifest,
        token=held.token,
    )
