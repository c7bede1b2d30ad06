"""What follows from the end of a unit: the next generation, the next stages, the end of the job.

The chain lives here, in the database; a broker only carries wake-ups. Every function expects the locks of
`glue.records.locks` to be held, and knows of plans only what it is handed.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session

from glue.records.database import CLOCK, database_time
from glue.records.events import record_event
from glue.records.ids import new_id
from glue.records.locks import FRESH
from glue.records.outbox import wake
from glue.records.tables import UNFINISHED, Job, Stage, Unit
from glue.specs.digests import digest_of
from glue.specs.errors import GlueError
from glue.specs.kinds import AnyJobSpec, parse_job
from glue.specs.plan import ADVANCE, ADVANCE_POSITION, StageOutcome, StagePlan, UnitOutcome, UnitPlan, WorkerClass

Unlock = Callable[[AnyJobSpec, Sequence[StageOutcome]], Sequence[StagePlan]]

_ADVANCE_PLAN = UnitPlan(ADVANCE, {}, WorkerClass.CPU)


def open_stages(session: Session, job: Job, plans: Sequence[StagePlan]) -> None:
    """Insert the stages that do not exist yet, and the first units of those that are ready and have none."""
    stages = {(stage.name, stage.family): stage for stage in stages_of(session, job.id)}
    for plan in plans:
        stage = stages.get((plan.name, plan.family)) or _add_stage(session, job, plan)
        if plan.ready and stage.state == "pending" and not _has_units(session, stage):
            _open_stage(session, job, stage, plan.units)


def add_units(session: Session, job: Job, stage: Stage, plans: Sequence[UnitPlan]) -> None:
    """Insert the units of the stage's open generation, with their wake-ups."""
    session.add_all(_unit(job, stage, position, plan) for position, plan in enumerate(plans))
    wake(session, [str(plan.worker_class) for plan in plans])


def add_advance(session: Session, job: Job, stage: Stage) -> None:
    """Insert the unit that decides what follows the stage's open generation."""
    session.add(_unit(job, stage, ADVANCE_POSITION, _ADVANCE_PLAN))
    wake(session, [str(_ADVANCE_PLAN.worker_class)])


def close_generation(session: Session, job: Job, stage: Stage) -> None:
    """Insert the advance unit if no unit of the stage is left unfinished."""
    if not session.scalar(select(exists().where(Unit.stage_id == stage.id, Unit.state.in_(UNFINISHED)))):
        add_advance(session, job, stage)


def follow_advance(session: Session, job: Job, stage: Stage, outcome: UnitOutcome, unlock: Unlock) -> None:
    """Do what an advance decided: insert its units as the next generation, or finish the stage."""
    if outcome.finished == bool(outcome.units):
        detail = f"the advance of stage {stage.name} has to give either units or the stage's result"
        fail_job(session, job, stage, GlueError(detail).as_json())
    elif outcome.units:
        stage.generation += 1
        add_units(session, job, stage, outcome.units)
    else:
        _succeed_stage(session, stage, outcome.result)
        _open_next(session, job, unlock)


def fail_job(session: Session, job: Job, stage: Stage | None, error: dict[str, Any]) -> None:
    """End the job, because of `stage` if one is given. Leased units learn of it by their heartbeat."""
    now = database_time(session)
    if stage is not None:
        stage.state, stage.error, stage.finished_at = "failed", error, now
        record_event(session, job.id, "stage.failed", {"error": error}, stage=stage)
    cancel_rest(session, job)
    job.status, job.status_reason, job.error, job.finished_at = "failed", str(error["reason"]), error, now
    record_event(session, job.id, "job.failed", {"error": error})


def cancel_rest(session: Session, job: Job) -> None:
    """Cancel every stage that has not ended and every unit that nobody holds."""
    units = update(Unit).where(Unit.job_id == job.id, Unit.state == "ready")
    session.execute(units.values(state="cancelled", finished_at=CLOCK))
    stages = update(Stage).where(Stage.job_id == job.id, Stage.state.in_(("pending", "running")))
    session.execute(stages.values(state="cancelled", finished_at=CLOCK))


def finish_cancel(session: Session, job: Job) -> None:
    """End a job that is being cancelled once nothing of it is leased."""
    leased = exists().where(Unit.job_id == job.id, Unit.state == "leased")
    if job.status == "cancelling" and not session.scalar(select(leased)):
        job.status, job.finished_at = "cancelled", database_time(session)
        record_event(session, job.id, "job.cancelled")


def stages_of(session: Session, job_id: str) -> list[Stage]:
    """The job's stages in order of position and family."""
    statement = select(Stage).where(Stage.job_id == job_id).order_by(Stage.position, Stage.family)
    return list(session.scalars(statement, execution_options=FRESH))


def outcomes_of(session: Session, job_id: str) -> tuple[StageOutcome, ...]:
    """The results of the job's finished stages, in order of position and family."""
    finished = (stage for stage in stages_of(session, job_id) if stage.state == "succeeded")
    return tuple(StageOutcome(stage.name, stage.family, stage.result or {}) for stage in finished)


def _open_stage(session: Session, job: Job, stage: Stage, first_units: Sequence[UnitPlan]) -> None:
    if first_units:
        add_units(session, job, stage, first_units)
    else:
        add_advance(session, job, stage)


def _succeed_stage(session: Session, stage: Stage, result: dict[str, Any]) -> None:
    stage.state, stage.result, stage.finished_at = "succeeded", result, database_time(session)
    record_event(session, stage.job_id, "stage.succeeded", stage=stage)


def _open_next(session: Session, job: Job, unlock: Unlock) -> None:
    open_stages(session, job, unlock(parse_job(job.spec), outcomes_of(session, job.id)))
    stages = stages_of(session, job.id)
    if all(stage.state == "succeeded" for stage in stages):
        _succeed_job(session, job, stages[-1].result)
    elif not session.scalar(select(exists().where(Unit.job_id == job.id, Unit.state.in_(UNFINISHED)))):
        pending = ", ".join(stage.name for stage in stages if stage.state == "pending")
        fail_job(session, job, None, GlueError(f"nothing is left that could start these stages: {pending}").as_json())


def _succeed_job(session: Session, job: Job, result: dict[str, Any] | None) -> None:
    job.status, job.result, job.finished_at = "succeeded", result, database_time(session)
    record_event(session, job.id, "job.succeeded")


def _add_stage(session: Session, job: Job, plan: StagePlan) -> Stage:
    stage = Stage(id=new_id("stg"), job_id=job.id, position=plan.position, name=plan.name, family=plan.family)
    session.add(stage)
    session.flush()
    return stage


def _has_units(session: Session, stage: Stage) -> bool:
    return bool(session.scalar(select(exists().where(Unit.stage_id == stage.id))))


def _unit(job: Job, stage: Stage, position: int, plan: UnitPlan) -> Unit:
    return Unit(
        id=new_id("unit"),
        job_id=job.id,
        stage_id=stage.id,
        generation=stage.generation,
        position=position,
        kind=plan.kind,
        worker_class=str(plan.worker_class),
        gpu_memory_bytes=plan.gpu_memory_bytes,
        payload=plan.payload,
        digest=_input_digest(job, stage, plan),
    )


def _input_digest(job: Job, stage: Stage, plan: UnitPlan) -> str:
    """What a unit's run depends on: it names the folder below the unit's own where partial work is resumed."""
    place = {"stage": stage.name, "family": stage.family, "generation": stage.generation}
    return digest_of({"spec": job.spec_digest, **place, "kind": plan.kind, "payload": plan.payload})
