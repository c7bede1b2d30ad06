"""Jobs as their owner sees them: created, read, listed, paused, cancelled. How a job runs is not known here."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, defer

from glue.records.chain import cancel_rest, finish_cancel, open_stages
from glue.records.database import database_time
from glue.records.errors import JobFinishedError, NotFoundError
from glue.records.events import record_event
from glue.records.ids import new_id
from glue.records.locks import lock_whole
from glue.records.outbox import wake
from glue.records.tables import ACTIVE, TERMINAL, UNFINISHED, Job, Stage, Unit
from glue.specs.digests import digest_of
from glue.specs.kinds import AnyJobSpec
from glue.specs.plan import ADVANCE_POSITION, StagePlan


@dataclass(frozen=True)
class UnitView:
    """A unit in a list: everything but its payload and its result, which may hold thousands of numbers."""

    id: str
    stage: str
    family: str
    generation: int
    position: int
    kind: str
    worker_class: str
    state: str
    attempts: int
    crashes: int
    worker: str | None
    progress: dict[str, Any] | None
    summary: dict[str, Any] | None
    error: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True)
class StageProgress:
    """How many of a stage's known units have ended; advances are not counted. A search may still add units."""

    stage: str
    family: str
    position: int
    state: str
    finished: int
    total: int


def create_job(
    session: Session,
    owner: str,
    spec: AnyJobSpec,
    stages: Sequence[StagePlan],
    *,
    name: str | None = None,
    labels: dict[str, str] | None = None,
    priority: int = 0,
    zoo_id: str | None = None,
) -> Job:
    """Store the job with its stages, the first units, the event `job.created` and the wake-ups."""
    plain = spec.as_json()
    job = Job(
        id=new_id("job"),
        owner=owner,
        kind=spec.kind,
        name=name,
        labels=labels or {},
        zoo_id=zoo_id,
        spec=plain,
        spec_version=spec.version,
        spec_digest=digest_of(plain),
        seed=spec.seed,
        priority=priority,
    )
    session.add(job)
    session.flush()
    open_stages(session, job, stages)
    record_event(session, job.id, "job.created", {"kind": job.kind})
    return job


def get_job(session: Session, owner: str, job_id: str) -> Job:
    """The owner's job.

    Raises:
        NotFoundError: the owner has no such job.
    """
    job = session.scalar(select(Job).where(Job.owner == owner, Job.id == job_id))
    if job is None:
        raise NotFoundError(f"there is no job {job_id}")
    return job


def list_jobs(
    session: Session,
    owner: str,
    *,
    statuses: Sequence[str] = (),
    labels: dict[str, str] | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[Job]:
    """The owner's jobs, newest first, from below the id `after`; of these statuses and with all these labels."""
    statement = select(Job).where(Job.owner == owner)
    if statuses:
        statement = statement.where(Job.status.in_(statuses))
    if labels:
        statement = statement.where(Job.labels.contains(labels))
    if after is not None:
        statement = statement.where(Job.id < after)
    return list(session.scalars(statement.order_by(Job.id.desc()).limit(limit)))


def request_pause(session: Session, owner: str, job_id: str) -> Job:
    """Let nothing more of the job be claimed. Units that run go on to their ends and are recorded.

    Repeating it changes nothing. A job whose last unit was running ends all the same.

    Raises:
        NotFoundError: the owner has no such job.
        JobFinishedError: the job has ended or is being cancelled.
    """
    job = _unfinished(session, owner, job_id)
    if job.status in ACTIVE:
        job.status = "paused"
        record_event(session, job.id, "job.paused")
    session.flush()
    return job


def request_resume(session: Session, owner: str, job_id: str) -> Job:
    """Let a paused job go on where it stopped. Of a job that is not paused it changes nothing.

    Raises:
        NotFoundError: the owner has no such job.
        JobFinishedError: the job has ended or is being cancelled.
    """
    job = _unfinished(session, owner, job_id)
    if job.status == "paused":
        job.status = "running" if job.started_at else "queued"
        record_event(session, job.id, "job.resumed")
        ready = select(Unit.worker_class).where(Unit.job_id == job.id, Unit.state == "ready")
        wake(session, session.scalars(ready))
    session.flush()
    return job


def request_cancel(session: Session, owner: str, job_id: str) -> Job:
    """Cancel what nobody runs, at once; the job is `cancelled` when nothing was leased, else `cancelling`.

    Repeating it while the job is `cancelling` changes nothing.

    Raises:
        NotFoundError: the owner has no such job.
        JobFinishedError: the job has ended.
    """
    get_job(session, owner, job_id)
    job = lock_whole(session, [job_id])[job_id]
    if job.status in TERMINAL:
        raise JobFinishedError(f"job {job_id} has ended already: it is {job.status}")
    if job.status != "cancelling":
        job.status, job.cancel_requested_at = "cancelling", database_time(session)
        cancel_rest(session, job)
        record_event(session, job.id, "job.cancelling")
        finish_cancel(session, job)
    session.flush()
    return job


def list_stages(session: Session, job_id: str, *, results: bool = False) -> list[Stage]:
    """The job's stages in order of position and family. Without `results` theirs cannot be read."""
    statement = select(Stage).where(Stage.job_id == job_id).order_by(Stage.position, Stage.family)
    if not results:
        statement = statement.options(defer(Stage.result, raiseload=True))
    return list(session.scalars(statement))


def list_units(
    session: Session, job_id: str, *, stage: str | None = None, after: str | None = None, limit: int = 50
) -> list[UnitView]:
    """The job's units in order of id, from above the id `after`; of all families of one stage if it is named."""
    statement = _unit_views().where(Unit.job_id == job_id)
    if stage is not None:
        statement = statement.where(Stage.name == stage)
    if after is not None:
        statement = statement.where(Unit.id > after)
    return [UnitView(*row) for row in session.execute(statement.order_by(Unit.id).limit(limit))]


def get_unit(session: Session, job_id: str, unit_id: str) -> Unit:
    """The job's unit with its payload and result.

    Raises:
        NotFoundError: the job has no such unit.
    """
    unit = session.scalar(select(Unit).where(Unit.job_id == job_id, Unit.id == unit_id))
    if unit is None:
        raise NotFoundError(f"there is no unit {unit_id}")
    return unit


def progress_of(session: Session, job_id: str) -> list[StageProgress]:
    """Ended and known units of every stage of the job, in order of position and family."""
    counted = Unit.position != ADVANCE_POSITION
    total = func.count(Unit.id).filter(counted)
    finished = func.count(Unit.id).filter(counted, Unit.state.not_in(UNFINISHED))
    statement = (
        select(Stage.name, Stage.family, Stage.position, Stage.state, finished, total)
        .outerjoin(Unit, Unit.stage_id == Stage.id)
        .where(Stage.job_id == job_id)
        .group_by(Stage.id)
        .order_by(Stage.position, Stage.family)
    )
    return [StageProgress(*row) for row in session.execute(statement)]


def _unfinished(session: Session, owner: str, job_id: str) -> Job:
    """The owner's job, locked as a whole, if it can still be changed."""
    get_job(session, owner, job_id)
    job = lock_whole(session, [job_id])[job_id]
    if job.status in TERMINAL:
        raise JobFinishedError(f"job {job_id} has ended already: it is {job.status}")
    if job.status == "cancelling":
        raise JobFinishedError(f"job {job_id} is being cancelled")
    return job


def _unit_views() -> Select[Any]:
    columns = (
        Unit.id,
        Stage.name,
        Stage.family,
        Unit.generation,
        Unit.position,
        Unit.kind,
        Unit.worker_class,
        Unit.state,
        Unit.attempts,
        Unit.crashes,
        Unit.lease_owner,
        Unit.progress,
        Unit.summary,
        Unit.error,
        Unit.created_at,
        Unit.started_at,
        Unit.finished_at,
    )
    return select(*columns).join(Stage, Stage.id == Unit.stage_id)
