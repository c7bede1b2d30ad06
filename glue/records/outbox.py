"""Wake-ups for workers, written with what they announce and published after the commit. Knows no broker."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from glue.records.database import CLOCK
from glue.records.tables import ACTIVE, KNOWN_SPEC_VERSIONS, Job, Outbox, Unit, Worker

CHANNEL = "glue_outbox"
SENT_KEPT = timedelta(hours=1)


def wake(session: Session, worker_classes: Iterable[str], due_at: datetime | None = None) -> None:
    """Announce work, at once or when it is due, and notify whoever listens on `CHANNEL`.

    `worker_classes` has an entry for each unit. One announcement wakes one worker, so there are as many of a class as
    there are units, but no more than workers that serve it, and one even if none has been seen.
    """
    for worker_class, units in sorted(Counter(worker_classes).items()):
        present = select(func.count()).select_from(Worker).where(Worker.classes.contains([worker_class]))
        rows = max(1, min(units, session.scalar(present) or 0)) if units > 1 else 1
        due = {"due_at": due_at} if due_at else {}
        session.add_all(Outbox(worker_class=worker_class, **due) for _ in range(rows))
        session.execute(select(func.pg_notify(CHANNEL, worker_class)))


def take_unsent(session: Session, limit: int) -> list[Outbox]:
    """Due rows that nobody has sent, oldest first, locked until the transaction ends; others' are skipped."""
    due = (Outbox.sent_at.is_(None), Outbox.due_at <= CLOCK)
    statement = select(Outbox).where(*due).order_by(Outbox.due_at, Outbox.id).limit(limit)
    return list(session.scalars(statement.with_for_update(skip_locked=True)))


def mark_sent(session: Session, ids: Sequence[int]) -> None:
    """Note that these rows were published, and forget what was sent more than an hour ago."""
    session.execute(update(Outbox).where(Outbox.id.in_(ids), Outbox.sent_at.is_(None)).values(sent_at=CLOCK))
    session.execute(delete(Outbox).where(Outbox.sent_at < CLOCK - SENT_KEPT))


def waiting_classes(session: Session, older_than: timedelta) -> list[str]:
    """The worker classes with units that could have been claimed for longer than `older_than`, in order."""
    statement = (
        select(Unit.worker_class)
        .join(Job, Job.id == Unit.job_id)
        .where(Unit.state == "ready", Unit.not_before <= CLOCK - older_than)
        .where(Job.status.in_(ACTIVE), Job.spec_version.in_(KNOWN_SPEC_VERSIONS))
        .distinct()
        .order_by(Unit.worker_class)
    )
    return list(session.scalars(statement))
