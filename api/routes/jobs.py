"""`/v1/jobs`: submitted, read, cancelled, with their stages and units."""

import secrets
from time import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from api import openapi, schemas, views
from api.bodies import Body
from api.dependencies import DEFAULT_LIMIT, CurrentSettings, Hub, Limit, Owner, Store, cursor, known_id
from api.idempotency import Once, parse_key
from api.problems import RefusalError
from api.request_ids import current_request_id
from api.settings import Settings
from api.warm_start import earlier_trials, pinned
from glue.builds.resolve import resolve_build
from glue.plans.model_glue import stages_at_submission
from glue.records import jobs, tables
from glue.records.artifacts import get_artifact, list_artifacts
from glue.records.database import database_time
from glue.records.errors import NotFoundError
from glue.records.zoos import get_zoo
from glue.references.hub_access import HubAccess
from glue.references.resolve import resolve_job, resolve_publish
from glue.specs.build import BuildRequest
from glue.specs.errors import InvalidInputError, Problem
from glue.specs.job import JobRequest
from glue.specs.kinds import AnyJobRequest, AnyJobSpec, parse_job, parse_request
from glue.specs.publish import PublishRequest
from glue.specs.zoo import ZooSpec
from glue.telemetry.traces import submission_span

MAX_SEED = 2**32

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.post(
    "", status_code=201, response_model=schemas.Job, openapi_extra=openapi.body(JobRequest, openapi.JOB_EXAMPLE)
)
def create_job(
    body: Body,
    owner: Owner,
    store: Store,
    settings: CurrentSettings,
    hub: Hub,
    idempotency_key: Annotated[str | None, Header(description="The same key and body submit one job.")] = None,
) -> Response:
    """Submit a job. Every mistake that configs and headers tell is told now, all at once."""
    began = time()
    request = parse_request(body)
    once = Once(owner, parse_key(idempotency_key), "POST /v1/jobs", body)
    with store.transaction() as session:
        if reply := once.earlier(session):
            return reply
        subject = subject_of(session, owner, request)
        earlier = earlier_trials(session, owner, request)
    # Outside any transaction: it reads every model's headers.
    spec = pinned(resolved(request, subject, settings, hub), earlier)
    with store.transaction() as session:
        # A twin of this request may have been faster.
        if reply := once.earlier(session):
            return reply
        row = jobs.create_job(
            session,
            owner,
            spec,
            stages_at_submission(spec),
            name=request.name,
            labels=request.labels,
            priority=request.priority,
            zoo_id=subject.id if isinstance(subject, tables.Zoo) else None,
        )
        session.flush()
        answer = _view(session, owner, row).model_dump(mode="json")
        location = f"/v1/jobs/{row.id}"
        once.keep(session, 201, location, answer)
    submission_span(row.id, began, {"job_id": row.id, "request_id": current_request_id()})
    return JSONResponse(answer, 201, {"Location": location})


@router.get("", response_model=schemas.JobPage)
def list_jobs(
    owner: Owner,
    store: Store,
    status: Annotated[list[schemas.JobStatus], Query(description="Any of these.")] = [],  # noqa: B006 - pydantic copies
    label: Annotated[list[str], Query(description="All of these, each as `key:value`.")] = [],  # noqa: B006
    after: Annotated[str | None, cursor("job")] = None,
    limit: Limit = DEFAULT_LIMIT,
) -> dict[str, Any]:
    """List jobs, newest first."""
    labels = dict(_label(number, text) for number, text in enumerate(label))
    with store.transaction() as session:
        rows = jobs.list_jobs(session, owner, statuses=status, labels=labels, after=after, limit=limit + 1)
        return views.page(rows, limit, lambda row: _view(session, owner, row), lambda row: row.id)


@router.get("/{job_id}")
def get_job(job_id: str, owner: Owner, store: Store) -> schemas.Job:
    """One job."""
    with store.transaction() as session:
        return _view(session, owner, jobs.get_job(session, owner, known_id("job", job_id)))


@router.post("/{job_id}/pause", status_code=202)
def pause_job(job_id: str, owner: Owner, store: Store) -> schemas.Job:
    """Start no more units of a job. Those that run finish and are kept; repeating it changes nothing."""
    with store.transaction() as session:
        return _view(session, owner, jobs.request_pause(session, owner, known_id("job", job_id)))


@router.post("/{job_id}/resume", status_code=202)
def resume_job(job_id: str, owner: Owner, store: Store) -> schemas.Job:
    """Let a paused job go on where it stopped; repeating it changes nothing."""
    with store.transaction() as session:
        return _view(session, owner, jobs.request_resume(session, owner, known_id("job", job_id)))


@router.post("/{job_id}/cancel", status_code=202)
def cancel_job(job_id: str, owner: Owner, store: Store) -> schemas.Job:
    """End a job. Units that run are stopped within seconds; repeating it changes nothing."""
    with store.transaction() as session:
        return _view(session, owner, jobs.request_cancel(session, owner, known_id("job", job_id)))


@router.get("/{job_id}/stages", response_model=schemas.StageList)
def list_stages(job_id: str, owner: Owner, store: Store) -> dict[str, Any]:
    """All stages of a job, in the order of its chain."""
    with store.transaction() as session:
        row = jobs.get_job(session, owner, known_id("job", job_id))
        stages = views.stage_list(jobs.list_stages(session, row.id), jobs.progress_of(session, row.id))
        return views.whole(stages, lambda stage: stage)


@router.get("/{job_id}/units", response_model=schemas.UnitPage)
def list_units(
    job_id: str,
    owner: Owner,
    store: Store,
    stage: Annotated[str | None, Query(pattern="^[a-z_]{1,64}$", description="Only those of this stage.")] = None,
    after: Annotated[str | None, cursor("unit")] = None,
    limit: Limit = DEFAULT_LIMIT,
) -> dict[str, Any]:
    """The units of a job, in the order of their making."""
    with store.transaction() as session:
        row = jobs.get_job(session, owner, known_id("job", job_id))
        units = jobs.list_units(session, row.id, stage=stage, after=after, limit=limit + 1)
        return views.page(units, limit, views.unit, lambda unit: unit.id)


@router.get("/{job_id}/units/{unit_id}")
def get_unit(job_id: str, unit_id: str, owner: Owner, store: Store) -> schemas.UnitDetail:
    """One unit with its inputs and its result; of a candidate also the recipe in mergekit's words."""
    with store.transaction() as session:
        row = jobs.get_job(session, owner, known_id("job", job_id))
        found = jobs.get_unit(session, row.id, known_id("unit", unit_id))
        return views.unit_detail(found, parse_job(row.spec))


def subject_of(session: Session, owner: str, request: AnyJobRequest) -> tables.Zoo | tables.Artifact | None:
    """What a job is about: a stored zoo, or an artifact to publish; a build names its models itself.

    Raises:
        InvalidInputError: the owner has nothing of that name.
    """
    if isinstance(request, BuildRequest):
        return None
    if isinstance(request, PublishRequest):
        return _artifact(session, owner, request.artifact)
    return _zoo(session, owner, request.zoo)


def resolved(
    request: AnyJobRequest, subject: tables.Zoo | tables.Artifact | None, settings: Settings, hub: HubAccess
) -> AnyJobSpec:
    """The spec to store.

    Raises:
        GlueError: as `resolve_job` and its like.
    """
    if isinstance(request, PublishRequest):
        assert isinstance(subject, tables.Artifact)
        return resolve_publish(request, subject.id, subject.digest, subject.location, hub)
    seed = secrets.randbelow(MAX_SEED)
    if isinstance(request, BuildRequest):
        return resolve_build(request, settings.roots, seed, hub)
    assert isinstance(subject, tables.Zoo)
    return resolve_job(request, ZooSpec.parse(subject.spec), settings.roots, seed, hub)


def _artifact(session: Session, owner: str, artifact_id: str) -> tables.Artifact:
    try:
        return get_artifact(session, owner, artifact_id)
    except NotFoundError:
        detail = f"there is no artifact {artifact_id}"
        problem = Problem("/artifact", "unknown_artifact", detail, "GET /v1/artifacts?job=... lists those of a job")
        raise InvalidInputError(detail, [problem]) from None


def _view(session: Session, owner: str, row: tables.Job) -> schemas.Job:
    stages, progress = jobs.list_stages(session, row.id), jobs.progress_of(session, row.id)
    artifacts = list_artifacts(session, owner, row.id) if row.result else []
    return views.job(row, stages, progress, artifacts, database_time(session))


def _zoo(session: Session, owner: str, name: str) -> tables.Zoo:
    try:
        return get_zoo(session, owner, name)
    except NotFoundError:
        detail = f"there is no zoo '{name}'"
        problem = Problem("/zoo", "unknown_zoo", detail, "store it first with POST /v1/zoos or `glue zoo add`")
        raise InvalidInputError(detail, [problem]) from None


def _label(number: int, text: str) -> tuple[str, str]:
    key, colon, value = text.partition(":")
    if not colon or "\0" in text:
        detail = f"the label filter {text[:100]!r} is not of the form key:value"
        problem = Problem(f"/query/label/{number}", "invalid_label", detail, "write it as label=env:dev")
        raise RefusalError(422, "invalid_parameter", detail, [problem])
    return key, value
