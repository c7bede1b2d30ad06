"""A job's events: append only, numbered without gaps, the record of what happened."""

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from glue.records.tables import Event, Job, Stage, Unit


def record_event(
    session: Session,
    job_id: str,
    type_: str,
    data: dict[str, Any] | None = None,
    *,
    stage: Stage | None = None,
    unit: Unit | None = None,
    token: int | None = None,
) -> None:
    """Append an event. Numbering it takes the job's row lock, which is why it comes last in a transaction."""
    advance = update(Job).where(Job.id == job_id).values(event_seq=Job.event_seq + 1).returning(Job.event_seq)
    seq = session.execute(advance).scalar_one()
    session.add(
        Event(
            job_id=job_id,
            seq=seq,
            type=type_,
            stage=stage.name if stage else None,
            family=stage.family if stage else None,
            unit_id=unit.id if unit else None,
            token=token,
            data=data or {},
        )
    )


def list_events(session: Session, job_id: str, after: int, limit: int) -> list[Event]:
    """At most `limit` events with a number above `after`, in order."""
    statement = select(Event).where(Event.job_id == job_id, Event.seq > after).order_by(Event.seq).limit(limit)
    return list(session.scalars(statement))
