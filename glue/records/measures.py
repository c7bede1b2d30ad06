"""What the queue looks like from outside: numbers of units and jobs, ages, workers. Reads only."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import extract, func, select
from sqlalchemy.orm import Session

from glue.records.database import CLOCK
from glue.records.tables import ACTIVE, LIVE, UNFINISHED, Job, Unit, Worker

# A worker that was silent for so long counts no more.
PRESENT = timedelta(minutes=2)


@dataclass(frozen=True)
class QueueMeasure:
    """Units of one class in one state; `oldest` is how long the first of them could have been claimed, in seconds."""

    worker_class: str
    state: str
    units: int
    oldest: float


@dataclass(frozen=True)
class Measures:
    """One look at the records."""

    queue: Sequence[QueueMeasure]
    jobs: dict[str, int]
    workers: dict[str, int]


def measure(session: Session) -> Measures:
    """Count the unfinished units by class and state, the active jobs by status, the present workers by class."""
    return Measures(_queue(session), _jobs(session), _workers(session))


def _queue(session: Session) -> list[QueueMeasure]:
    age = func.max(extract("epoch", CLOCK - Unit.not_before))
    statement = (
        select(Unit.worker_class, Unit.state, func.count(), func.greatest(age, 0))
        .join(Job, Job.id == Unit.job_id)
        .where(Unit.state.in_(UNFINISHED), (Unit.state == "leased") | Job.status.in_(ACTIVE))
        .group_by(Unit.worker_class, Unit.state)
    )
    return [
        QueueMeasure(name, state, count, float(oldest)) for name, state, count, oldest in session.execute(statement)
    ]


def _jobs(session: Session) -> dict[str, int]:
    active = Job.status.in_((*LIVE, "cancelling"))
    rows = session.execute(select(Job.status, func.count()).where(active).group_by(Job.status))
    return {str(name): int(count) for name, count in rows}


def _workers(session: Session) -> dict[str, int]:
    served = func.unnest(Worker.classes).label("served")
    present = select(served).where(Worker.beat_at > CLOCK - PRESENT).subquery()
    rows = session.execute(select(present.c.served, func.count()).group_by(present.c.served))
    return {str(name): int(count) for name, count in rows}
