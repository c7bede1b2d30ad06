"""The tables. Postgres is the only truth; its clock is the only clock; states change only by conditional updates.

Lock order of every transaction that takes more than one of them: stage, then unit, then job (`glue.records.locks`).
"""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Sequence,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from glue.specs.job import SPEC_VERSION

JOB_STATUSES = ("queued", "running", "paused", "cancelling", "succeeded", "failed", "cancelled")
STAGE_STATES = ("pending", "running", "succeeded", "failed", "cancelled")
UNIT_STATES = ("ready", "leased", "succeeded", "failed", "cancelled")
TERMINAL = ("succeeded", "failed", "cancelled")
# Of these jobs units are claimed; of those that live, what a worker brings is recorded.
ACTIVE = ("queued", "running")
LIVE = (*ACTIVE, "paused")
UNFINISHED = ("ready", "leased")
# Jobs of a later release are left to workers of that release.
KNOWN_SPEC_VERSIONS = (SPEC_VERSION,)


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


class Base(DeclarativeBase):
    """The root of the tables; constraints are named so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        str: Text,
        dict[str, Any]: JSONB(none_as_null=True),
        list[str]: ARRAY(Text),
    }


# One sequence for every lease of every unit: a later claim always has the larger token.
fence_sequence = Sequence("fence_seq", metadata=Base.metadata)


class ApiKey(Base):
    """A bearer key; only the sha256 of its secret is stored."""

    __tablename__ = "api_key"
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(index=True)
    name: Mapped[str]
    hash: Mapped[str] = mapped_column(unique=True)
    prefix: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class HubToken(Base):
    """An owner's token for the Hub, sealed; `account` and `role` are what the Hub said of it."""

    __tablename__ = "hub_token"
    owner: Mapped[str] = mapped_column(primary_key=True)
    sealed: Mapped[bytes]
    account: Mapped[str]
    role: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class IdempotencyKey(Base):
    """What a request with an Idempotency-Key answered, so that its repetition answers the same."""

    __tablename__ = "idempotency_key"
    owner: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    status: Mapped[int]
    location: Mapped[str]
    body: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)


class Zoo(Base):
    """A stored zoo; a job keeps its own copy of the spec."""

    __tablename__ = "zoo"
    __table_args__ = (UniqueConstraint("owner", "name"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    name: Mapped[str]
    spec: Mapped[dict[str, Any]]
    digest: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Job(Base):
    """One submitted spec. `spec` never changes; `event_seq` numbers the job's events."""

    __tablename__ = "job"
    __table_args__ = (
        CheckConstraint(_one_of("status", JOB_STATUSES), name="status"),
        CheckConstraint(f"({_one_of('status', TERMINAL)}) = (finished_at IS NOT NULL)", name="finished"),
        Index("ix_job_owner_id", "owner", "id"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    kind: Mapped[str]
    name: Mapped[str | None]
    labels: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    zoo_id: Mapped[str | None] = mapped_column(ForeignKey("zoo.id", ondelete="SET NULL"))
    spec: Mapped[dict[str, Any]]
    spec_version: Mapped[int]
    spec_digest: Mapped[str]
    seed: Mapped[int] = mapped_column(BigInteger)
    priority: Mapped[int] = mapped_column(server_default=text("0"))
    status: Mapped[str] = mapped_column(server_default="queued")
    status_reason: Mapped[str | None]
    reproducible: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    event_seq: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    cancel_requested_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Stage(Base):
    """One run of a stage of a job. `family` is empty but for the stages that run once per family."""

    __tablename__ = "stage"
    __table_args__ = (
        UniqueConstraint("job_id", "name", "family"),
        CheckConstraint(_one_of("state", STAGE_STATES), name="state"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    position: Mapped[int]
    name: Mapped[str]
    family: Mapped[str] = mapped_column(server_default="")
    state: Mapped[str] = mapped_column(server_default="pending")
    generation: Mapped[int] = mapped_column(server_default=text("0"))
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Unit(Base):
    """The only thing that a worker claims, and the only thing that a crash can cost."""

    __tablename__ = "unit"
    __table_args__ = (
        UniqueConstraint("stage_id", "generation", "position"),
        CheckConstraint(_one_of("state", UNIT_STATES), name="state"),
        CheckConstraint(
            "(state = 'leased') = (lease_token IS NOT NULL AND lease_expires_at IS NOT NULL"
            " AND lease_owner IS NOT NULL)",
            name="lease",
        ),
        Index("ix_unit_ready", "worker_class", "not_before", postgresql_where=text("state = 'ready'")),
        Index("ix_unit_leased", "lease_expires_at", postgresql_where=text("state = 'leased'")),
        Index("ix_unit_job", "job_id", "id"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    stage_id: Mapped[str] = mapped_column(ForeignKey("stage.id", ondelete="CASCADE"))
    generation: Mapped[int]
    # The advance unit of a generation has position -1, so the unique constraint allows only one.
    position: Mapped[int]
    kind: Mapped[str]
    worker_class: Mapped[str]
    gpu_memory_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    payload: Mapped[dict[str, Any]]
    digest: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="ready")
    not_before: Mapped[datetime] = mapped_column(server_default=func.now())
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    max_attempts: Mapped[int] = mapped_column(server_default=text("3"))
    crashes: Mapped[int] = mapped_column(server_default=text("0"))
    max_crashes: Mapped[int] = mapped_column(server_default=text("3"))
    lease_owner: Mapped[str | None]
    lease_token: Mapped[int | None] = mapped_column(BigInteger)
    lease_expires_at: Mapped[datetime | None]
    progress: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    # The few scalars of the result that lists show; the result itself may hold thousands of numbers.
    summary: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Attempt(Base):
    """The audit of every claim: who, when, and how it ended, also when it was lost."""

    __tablename__ = "attempt"
    token: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    unit_id: Mapped[str] = mapped_column(ForeignKey("unit.id", ondelete="CASCADE"), index=True)
    worker: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    error: Mapped[dict[str, Any] | None]


class Score(Base):
    """A score that an owner's later jobs need not compute again; the key says all that it depends on."""

    __tablename__ = "score"
    owner: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    result: Mapped[dict[str, Any]]
    token: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class Artifact(Base):
    """A finished folder, named by its content. `location` is relative to the artifacts' root."""

    __tablename__ = "artifact"
    __table_args__ = (UniqueConstraint("unit_id", "kind"), Index("ix_artifact_owner_id", "owner", "id"))
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), index=True)
    unit_id: Mapped[str] = mapped_column(ForeignKey("unit.id", ondelete="CASCADE"))
    kind: Mapped[str]
    digest: Mapped[str]
    location: Mapped[str]
    manifest: Mapped[dict[str, Any]]
    token: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class Event(Base):
    """Append only. `seq` counts from 1 within a job without gaps: it is taken under the job's row lock."""

    __tablename__ = "event"
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    type: Mapped[str]
    stage: Mapped[str | None]
    family: Mapped[str | None]
    unit_id: Mapped[str | None]
    token: Mapped[int | None] = mapped_column(BigInteger)
    data: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))


class Outbox(Base):
    """Wake-ups to be published after the commit, but not before they are due: "there is work of class X"."""

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_unsent", "due_at", postgresql_where=text("sent_at IS NULL")),)
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    worker_class: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[datetime | None]


class Worker(Base):
    """A worker process as it last reported itself."""

    __tablename__ = "worker"
    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int] = mapped_column(Integer)
    classes: Mapped[list[str]]
    gpu_memory_bytes: Mapped[int] = mapped_column(BigInteger)
    version: Mapped[str]
    draining: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    beat_at: Mapped[datetime] = mapped_column(server_default=func.now())
