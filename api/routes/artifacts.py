"""`/v1/artifacts` and a job's report: finished folders, file by file as their manifests name them."""

import mimetypes
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse

from api import openapi, schemas, views
from api.dependencies import ULID, CurrentSettings, Owner, Store, known_id
from api.problems import RefusalError
from api.settings import Settings
from api.stored_files import stored_file
from glue.artifacts.storage import ArtifactStorage
from glue.records import artifacts, tables
from glue.records.jobs import get_job

REPORT_FILE = "report.json"
# Everything else is bytes: nothing that a browser would show as a page of ours.
SHOWN_TYPES = frozenset({"image/png", "application/json", "text/markdown", "text/plain"})

router = APIRouter(prefix="/v1", tags=["artifacts"])


@router.get("/artifacts", response_model=schemas.ArtifactPage)
def list_artifacts(
    owner: Owner, store: Store, job: Annotated[str, Query(pattern=f"^job_{ULID}$", description="The job's id.")]
) -> dict[str, Any]:
    """The artifacts of a job, in the order of their making; the last one of a succeeded job is its result."""
    with store.transaction() as session:
        get_job(session, owner, job)
        return views.whole(artifacts.list_artifacts(session, owner, job), views.artifact)


@router.get("/artifacts/{artifact_id}")
def get_artifact(artifact_id: str, owner: Owner, store: Store) -> schemas.Artifact:
    """One artifact with its manifest."""
    with store.transaction() as session:
        return views.artifact(artifacts.get_artifact(session, owner, known_id("art", artifact_id)))


@router.get("/artifacts/{artifact_id}/files/{path:path}", response_class=FileResponse, responses=openapi.FILE)
def get_artifact_file(
    artifact_id: str, path: str, owner: Owner, store: Store, settings: CurrentSettings, request: Request
) -> Response:
    """The bytes of one file that the manifest names; `Range` is understood, the `ETag` is the file's sha256."""
    with store.transaction() as session:
        row = artifacts.get_artifact(session, owner, known_id("art", artifact_id))
    return _file(row, path, settings, request)


@router.get("/jobs/{job_id}/report", tags=["jobs"], response_class=FileResponse, responses=openapi.REPORT)
def get_job_report(job_id: str, owner: Owner, store: Store, settings: CurrentSettings, request: Request) -> Response:
    """The report of a succeeded job: every model on items that the search never saw."""
    with store.transaction() as session:
        job = get_job(session, owner, known_id("job", job_id))
        model = views.model_of(job, artifacts.list_artifacts(session, owner, job.id))
    if model is None:
        raise RefusalError(404, "no_report", f"the job is {job.status}; a report exists once it has succeeded")
    return _file(model, REPORT_FILE, settings, request)


def _file(row: tables.Artifact, path: str, settings: Settings, request: Request) -> Response:
    entry = next((each for each in row.manifest["files"] if each["path"] == path), None)
    if entry is None:
        raise RefusalError(404, "not_found", f"artifact {row.id} has no file {path[:200]!r}")
    guessed = mimetypes.guess_type(path)[0] or ""
    media_type = guessed if guessed in SHOWN_TYPES else "application/octet-stream"
    headers = {"ETag": f'"{entry["sha256"]}"'}
    try:
        storage: ArtifactStorage | None = request.app.state.storage
        if storage is not None:
            headers["Content-Type"] = media_type
            wanted = _wanted_range(request, headers["ETag"])
            return stored_file(storage, row.location, path, entry["size"], headers, wanted)
        return FileResponse(_on_disk(settings.artifacts / row.location, path), media_type=media_type, headers=headers)
    except FileNotFoundError:
        raise RefusalError(404, "file_missing", f"the service has lost {path[:200]!r} of artifact {row.id}") from None


def _on_disk(folder: Path, path: str) -> Path:
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        raise FileNotFoundError(path)
    return file


def _wanted_range(request: Request, etag: str) -> str | None:
    """The header `Range`, unless it is meant for another state of the file."""
    return request.headers.get("Range") if request.headers.get("If-Range", etag) == etag else None
