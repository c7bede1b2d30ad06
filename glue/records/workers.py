"""Worker processes as they last reported themselves. Leases do not depend on it."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from os import getpid
from socket import gethostname

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from glue.records.database import CLOCK
from glue.records.errors import NotFoundError
from glue.records.leases import WorkerIdentity
from glue.records.tables import Unit, Worker

FORGOTTEN_AFTER = timedelta(days=1)


@dataclass(frozen=True)
class WorkerView:
    """A worker in a list; `unit_id` is the unit that it holds by a lease that has not expired, if any."""

    id: str
    host: str
    pid: int
    classes: list[str]
    gpu_memory_bytes: int
    version: str
    draining: bool
    unit_id: str | None
    started_at: datetime
    beat_at: datetime


def register_worker(session: Session, worker: WorkerIdentity) -> None:
    """Enter the calling process as a worker that has started; workers unseen for a day are forgotten."""
    facts = {
        "host": gethostname(),
        "pid": getpid(),
        "classes": [str(name) for name in worker.classes],
        "gpu_memory_bytes": worker.gpu_memory_bytes,
        "version": version("model-glue"),
        "draining": False,
        "started_at": CLOCK,
        "beat_at": CLOCK,
    }
    statement = insert(Worker).values(id=worker.id, **facts)
    session.execute(statement.on_conflict_do_update(index_elements=[Worker.id], set_=facts))
    session.execute(delete(Worker).where(Worker.beat_at < CLOCK - FORGOTTEN_AFTER))


def beat_worker(session: Session, worker_id: str) -> bool:
    """Note that the worker lives; true if it was asked to drain.

    Raises:
        NotFoundError: it is not registered (any more).
    """
    statement = update(Worker).where(Worker.id == worker_id).values(beat_at=CLOCK).returning(Worker.draining)
    draining = session.scalar(statement)
    if draining is None:
        raise NotFoundError(f"there is no worker {worker_id}")
    return draining


def set_draining(session: Session, worker_id: str) -> None:
    """Ask the worker to give back its unit and stop; its next heartbeat tells it.

    Raises:
        NotFoundError: it is not registered.
    """
    statement = update(Worker).where(Worker.id == worker_id).values(draining=True).returning(Worker.id)
    if session.scalar(statement) is None:
        raise NotFoundError(f"there is no worker {worker_id}")


def forget_worker(session: Session, worker_id: str) -> None:
    """Remove a worker that has stopped."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def list_workers(session: Session) -> list[WorkerView]:
    """All workers that are entered, in order of id."""
    held = (Unit.state == "leased", Unit.lease_owner == Worker.id, Unit.lease_expires_at > CLOCK)
    unit_id = select(Unit.id).where(*held).limit(1).scalar_subquery()
    columns = (
        Worker.id,
        Worker.host,
        Worker.pid,
        Worker.classes,
        Worker.gpu_memory_bytes,
        Worker.version,
        Worker.draining,
        unit_id,
        Worker.started_at,
        Worker.beat_at,
    )
    return [WorkerView(*row) for row in session.execute(select(*columns).order_by(Worker.id))]
