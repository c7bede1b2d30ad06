"""`/v1/preflight`: what a job or a zoo would meet, told before anything is stored or any weight is read."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from sqlalchemy.orm import Session

from api import openapi
from api.bodies import Body
from api.dependencies import CurrentSettings, Hub, Owner, Store
from api.routes.jobs import resolved, subject_of
from api.settings import Settings
from api.warm_start import earlier_trials, pinned
from glue.builds.resolve import examine_build
from glue.records.database import database_time
from glue.records.errors import NotFoundError
from glue.records.measures import PRESENT
from glue.records.workers import WorkerView, list_workers
from glue.records.zoos import get_zoo
from glue.references.findings import Findings
from glue.references.hub_access import HubAccess
from glue.references.models import FoundModel, find_models
from glue.references.preflight import Room, free_bytes, preflight
from glue.references.resolve import examine_job
from glue.specs.build import BuildRequest
from glue.specs.errors import Fault, GlueError, InvalidInputError, Problem
from glue.specs.job import JobRequest, JobSpec
from glue.specs.kinds import AnyJobRequest, parse_request
from glue.specs.preflight import Preflight
from glue.specs.zoo import ZooSpec

router = APIRouter(prefix="/v1/preflight", tags=["jobs"])


@router.post("", openapi_extra=openapi.body(JobRequest, openapi.JOB_EXAMPLE))
def preflight_job(body: Body, owner: Owner, store: Store, settings: CurrentSettings, hub: Hub) -> Preflight:
    """Look into a job, or a zoo, from headers and configs alone.

    The body is that of `POST /v1/jobs`, where `zoo` may also be a whole zoo instead of a name; or a zoo. Answers
    200 also where `problems` say why it would be refused: every one of them, with those of its models.
    """
    looked = _look(body, owner, store, settings, hub)
    with store.transaction() as session:
        since = database_time(session) - PRESENT
        workers = [each for each in list_workers(session) if each.beat_at > since and not each.draining]
    kind = "zoo" if _is_zoo(body) else str(body.get("kind", "model_glue")) if isinstance(body, dict) else ""
    return preflight(kind, looked.request, looked.models, looked.problems, _room(settings, workers))


class _Looked:
    """What was found: the request if it could be read, the models that can be used, every problem."""

    def __init__(self) -> None:
        self.request: AnyJobRequest | None = None
        self.models: list[FoundModel] = []
        self.problems: list[Problem] = []

    def note(self, error: GlueError) -> None:
        if error.fault is not Fault.USER:
            raise error
        self.problems += error.problems or [Problem("", error.reason, error.detail)]


def _look(body: Any, owner: str, store: Store, settings: Settings, hub: HubAccess) -> _Looked:
    looked = _Looked()
    zoo = _zoo_of(body, owner, store, looked)
    if not _is_zoo(body):
        try:
            looked.request = parse_request(_with_name(body, zoo))
        except InvalidInputError as error:
            looked.note(error)
    if looked.request is None:
        # What is wrong with the job must not hide what is wrong with its models.
        _find(zoo, settings, hub, looked)
    elif isinstance(looked.request, JobRequest):
        if zoo is not None:
            examined = examine_job(looked.request, zoo, settings.roots, 0, hub)
            looked.models, looked.problems = list(examined.models), [*looked.problems, *examined.findings.problems]
            _start(looked.request, examined.spec, owner, store, looked)
    elif isinstance(looked.request, BuildRequest):
        build = examine_build(looked.request, settings.roots, 0, hub)
        looked.models, looked.problems = list(build.models), [*looked.problems, *build.findings.problems]
    else:
        _resolve(looked.request, owner, store, settings, hub, looked)
    return looked


def _start(request: JobRequest, spec: JobSpec | None, owner: str, store: Store, looked: _Looked) -> None:
    """The earlier job that a search starts from, as a submission reads it."""
    try:
        with store.transaction() as session:
            earlier = earlier_trials(session, owner, request)
        if spec is not None:
            pinned(spec, earlier)
    except GlueError as error:
        looked.note(error)


def _resolve(
    request: AnyJobRequest, owner: str, store: Store, settings: Settings, hub: HubAccess, looked: _Looked
) -> None:
    """A submission without a zoo, up to where it would be stored."""
    try:
        with store.transaction() as session:
            subject = subject_of(session, owner, request)
        resolved(request, subject, settings, hub)
    except GlueError as error:
        looked.note(error)


def _find(zoo: ZooSpec | None, settings: Settings, hub: HubAccess, looked: _Looked) -> None:
    if zoo is not None:
        findings = Findings()
        looked.models = find_models(zoo, settings.roots, findings, hub)
        looked.problems += findings.problems


def _is_zoo(body: Any) -> bool:
    return isinstance(body, dict) and "members" in body and "kind" not in body


def _zoo_of(body: Any, owner: str, store: Store, looked: _Looked) -> ZooSpec | None:
    """The zoo that the body is, holds or names, if there is such a one."""
    given = body if _is_zoo(body) else body.get("zoo") if isinstance(body, dict) else None
    if isinstance(given, Mapping):
        try:
            return ZooSpec.parse(given)
        except InvalidInputError as error:
            looked.note(error)
            return None
    if not isinstance(given, str):
        return None
    with store.transaction() as session:
        return _stored(session, owner, given, looked)


def _stored(session: Session, owner: str, name: str, looked: _Looked) -> ZooSpec | None:
    try:
        return ZooSpec.parse(get_zoo(session, owner, name).spec)
    except NotFoundError:
        fix = "store it first with `glue zoo add`, or give the whole zoo"
        looked.problems.append(Problem("/zoo", "unknown_zoo", f"there is no zoo '{name[:100]}'", fix))
        return None


def _with_name(body: Any, zoo: ZooSpec | None) -> Any:
    """The body as a submission reads it: the zoo by name."""
    if not isinstance(body, dict) or not isinstance(body.get("zoo"), Mapping):
        return body
    return body | {"zoo": zoo.name if zoo is not None else "zoo"}


def _room(settings: Settings, workers: list[WorkerView]) -> Room:
    free = None if settings.artifacts_url else free_bytes(settings.home)
    # Where a machine with a GPU also serves other classes cannot be told; the slower assumption is made.
    on_device = any("gpu" in each.classes and "cpu" not in each.classes for each in workers)
    return Room(free, [(each.classes, each.gpu_memory_bytes) for each in workers], on_device)
