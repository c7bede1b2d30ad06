"""The shapes of answers: every field always there, null where there is nothing to say. Knows no table."""

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, WithJsonSchema

# Specs are shown as they were stored, also those of another release; the document tells their shape.
StoredZooSpec = Annotated[dict[str, Any], WithJsonSchema({"allOf": [{"$ref": "#/components/schemas/ZooSpec"}]})]
_JOB_SPECS = [{"$ref": f"#/components/schemas/{name}"} for name in ("JobSpec", "BuildJobSpec", "PublishJobSpec")]
StoredJobSpec = Annotated[dict[str, Any], WithJsonSchema({"anyOf": _JOB_SPECS})]

JobStatus = Literal["queued", "running", "paused", "cancelling", "succeeded", "failed", "cancelled"]
StageStatus = Literal["pending", "running", "succeeded", "failed", "cancelled"]
UnitStatus = Literal["ready", "leased", "succeeded", "failed", "cancelled"]


Item = TypeVar("Item")


class Answer(BaseModel):
    """The root of answers. Times are RFC 3339 in UTC, durations are in seconds."""

    model_config = ConfigDict(frozen=True)


class Page(Answer, Generic[Item]):
    """A page of a list, newest first unless said otherwise; ask on with `after=next_cursor` while `has_more`."""

    object: Literal["list"]
    data: list[Item]
    has_more: bool
    next_cursor: str | None


class Zoo(Answer):
    """A stored zoo."""

    id: str
    object: Literal["zoo"]
    name: str
    spec: StoredZooSpec
    digest: str
    created_at: datetime
    updated_at: datetime


class ZooPage(Page[Zoo]):
    """A page of zoos."""


class UnitCounts(Answer):
    """Units of a stage or a job: those that have ended, and those that are known so far."""

    finished: int
    total: int


class ErrorDetail(Answer):
    """One mistake; `pointer` is a JSON pointer into what the user wrote, `fix` says what to do."""

    pointer: str
    code: str
    detail: str
    fix: str


class Failure(Answer):
    """Why a unit, a stage or a job failed; `fault` tells whose fault it is."""

    reason: str
    fault: str
    detail: str
    problems: list[ErrorDetail]


class Stage(Answer):
    """A stage of a job; `family` is null but for stages that run once a family."""

    id: str
    object: Literal["stage"]
    name: str
    family: str | None
    position: int
    status: StageStatus
    generation: int
    units: UnitCounts
    error: Failure | None
    started_at: datetime | None
    finished_at: datetime | None


class StageList(Page[Stage]):
    """All stages of a job in their order; there is always one page."""


class Progress(Answer):
    """How far a job is: each stage of its chain counts the same. 100 only when the job has succeeded."""

    percent: int
    stage: str | None
    units: UnitCounts


class Durations(Answer):
    """How long a job waited and ran, so far or in all."""

    queued_seconds: float
    running_seconds: float | None


class Initiator(Answer):
    """Who submitted a job."""

    type: Literal["owner"]
    id: str


class JobResult(Answer):
    """What a succeeded job gives; gains are in points of mean accuracy over the best single model.

    They are null of a build without a report suite, and `recommended` of every build, which has nothing to choose.
    """

    artifact_id: str
    digest: str
    recommended: str | None
    best_single: str | None
    gain_over_best_single: float | None
    gain_over_best_single_stderr: float | None


class Published(Answer):
    """Where a model was published: the commit on main of a repository of the Hub."""

    repo: str
    commit: str
    tag: str | None
    url: str


class Job(Answer):
    """A job. `spec` is immutable and complete: every reference resolved, every default filled in.

    `chain` names the stages that it goes through, in order; `stages` are those that are known so far.
    """

    id: str
    object: Literal["job"]
    kind: str
    name: str | None
    labels: dict[str, str]
    priority: int
    zoo_id: str | None
    status: JobStatus
    status_reason: str | None
    status_message: str | None
    spec: StoredJobSpec
    spec_digest: str
    seed: int
    reproducible: bool
    warnings: list[str]
    progress: Progress
    chain: list[str]
    stages: list[Stage]
    result: JobResult | None
    published: Published | None
    error: Failure | None
    durations: Durations
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    initiator: Initiator


class JobPage(Page[Job]):
    """A page of jobs."""


class Unit(Answer):
    """A unit: the only thing that a worker claims. `summary` holds the short values of its result."""

    id: str
    object: Literal["unit"]
    stage: str
    family: str | None
    kind: str
    generation: int
    position: int
    worker_class: str
    status: UnitStatus
    attempts: int
    crashes: int
    worker: str | None
    progress: dict[str, Any] | None
    summary: dict[str, Any] | None
    error: Failure | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class UnitDetail(Answer):
    """A unit's inputs and its whole result. `mergekit` is the recipe of a candidate as mergekit reads it, null
    for other units and for what mergekit cannot say."""

    id: str
    object: Literal["unit"]
    kind: str
    status: UnitStatus
    payload: dict[str, Any]
    result: dict[str, Any] | None
    mergekit: dict[str, Any] | None


class UnitPage(Page[Unit]):
    """A page of a job's units, in the order of their making."""


class Event(Answer):
    """An entry of a job's record; `seq` counts from 1 within the job without gaps."""

    object: Literal["event"]
    seq: int
    type: str
    stage: str | None
    family: str | None
    unit_id: str | None
    data: dict[str, Any]
    at: datetime


class EventPage(Page[Event]):
    """A page of a job's events, oldest first; `next_cursor` is the last one's `seq`."""


class ManifestFile(Answer):
    """One file of an artifact; `path` is relative to it, `size` in bytes, `sha256` in hexadecimal."""

    path: str
    size: int
    sha256: str


class Manifest(Answer):
    """Every file of an artifact, sorted by path."""

    files: list[ManifestFile]


class Artifact(Answer):
    """A finished folder, named by its content; `location` is relative to the service's folder of artifacts."""

    id: str
    object: Literal["artifact"]
    job_id: str
    kind: str
    digest: str
    location: str
    size: int
    manifest: Manifest
    created_at: datetime


class ArtifactPage(Page[Artifact]):
    """A page of artifacts."""


class Worker(Answer):
    """A worker process as it last reported itself; `gpu_memory_bytes` is 0 where it has no limit of its own."""

    id: str
    object: Literal["worker"]
    host: str
    classes: list[str]
    gpu_memory_bytes: int
    version: str
    draining: bool
    busy: bool
    started_at: datetime
    beat_at: datetime


class WorkerList(Page[Worker]):
    """All workers; there is always one page."""


class HubToken(Answer):
    """What is known of the owner's token for the Hub: the account it belongs to and its role there. Never the token."""

    object: Literal["hub_token"]
    account: str
    role: str
    created_at: datetime
    updated_at: datetime


class Health(Answer):
    """The process answers."""

    status: Literal["ok"]


class Readiness(Answer):
    """Whether requests can be served. Without Redis they can: workers then find their work by polling."""

    status: Literal["ready", "degraded", "unavailable"]
    checks: dict[str, str]


class Problem(Answer):
    """An error (RFC 9457); `code` is stable, `errors` are the mistakes that were found, all at once."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    errors: list[ErrorDetail]
    request_id: str
