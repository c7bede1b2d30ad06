"""Row locks in their one order: stages, then units, then jobs; and the fence. Changes nothing.

Most transactions touch one unit: they lock its stage, the unit, the job (`hold`). Those that may decide
about other stages (a stage that ends, a failure, a cancel, the reaper) take the whole job (`lock_whole`), one
transaction at a time: whoever comes second sees what the first one did. Units are inserted only under their
stage's lock and stages only under the whole job's, so nothing appears behind the back of one that holds them.
The locks are as weak as an update's own (`key_share`): rows that only refer to a locked one do not wait for it.
"""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from glue.records.database import CLOCK
from glue.records.errors import LeaseLost
from glue.records.tables import UNFINISHED, Job, Stage, Unit

# Read from the row, whatever the session has seen before.
FRESH = {"populate_existing": True}


@dataclass(frozen=True)
class Held:
    """A unit whose lease under `token` was valid once everything here was locked."""

    token: int
    unit: Unit
    stage: Stage
    job: Job


def hold(session: Session, unit_id: str, token: int, *, whole: bool) -> Held:
    """Lock the unit with its stage and job, or with its `whole` job, and check that the lease is held.

    Raises:
        LeaseLost: the unit is not leased under this token, or the lease has expired.
    """
    keys = session.execute(select(Unit.stage_id, Unit.job_id).where(Unit.id == unit_id)).first()
    if keys is None:
        raise LeaseLost(f"there is no unit {unit_id}")
    if whole:
        lock_whole(session, [keys.job_id])
    else:
        session.execute(select(Stage.id).where(Stage.id == keys.stage_id).with_for_update(key_share=True))
    unit = hold_lease(session, unit_id, token)
    job = select(Job).where(Job.id == keys.job_id).with_for_update(key_share=True)
    return Held(token, unit, read_stage(session, unit), session.scalars(job, execution_options=FRESH).one())


def hold_lease(session: Session, unit_id: str, token: int) -> Unit:
    """The fence: lock the unit if it is leased under this token by a lease that has not expired.

    Raises:
        LeaseLost: it is not.
    """
    lease = (Unit.state == "leased", Unit.lease_token == token, Unit.lease_expires_at > CLOCK)
    statement = select(Unit).where(Unit.id == unit_id, *lease).with_for_update(key_share=True)
    unit = session.scalar(statement, execution_options=FRESH)
    if unit is None:
        raise LeaseLost(f"unit {unit_id} is not leased under token {token} any more")
    return unit


def lock_whole(session: Session, job_ids: Collection[str]) -> dict[str, Job]:
    """Lock these jobs with all their stages and unfinished units, as their only such holder."""
    for job_id in sorted(job_ids):
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(job_id, 0))))
    stages = select(Stage.id).where(Stage.job_id.in_(job_ids)).order_by(Stage.id)
    session.execute(stages.with_for_update(key_share=True))
    units = select(Unit.id).where(Unit.job_id.in_(job_ids), Unit.state.in_(UNFINISHED)).order_by(Unit.id)
    session.execute(units.with_for_update(key_share=True))
    jobs = select(Job).where(Job.id.in_(job_ids)).order_by(Job.id).with_for_update(key_share=True)
    return {job.id: job for job in session.scalars(jobs, execution_options=FRESH)}


def read_stage(session: Session, unit: Unit) -> Stage:
    """The unit's stage as it is now."""
    return session.scalars(select(Stage).where(Stage.id == unit.stage_id), execution_options=FRESH).one()
