"""`/v1/artifacts` and a job's report: finished folders, file by file as their manifests name them."""

import mimetypes
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse

from api import openapi, schemas, views
from api.dependencies import ULID, CurrentSettings, Owner, Store, known_id
from api.problems import RefusalError
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
def get_artifact_file(artifact_id: str, path: str, owner: Owner, store: Store, settings: CurrentSettings) -> Response:
    """The bytes of one file that the manifest names; `Range` is understood, the `ETag` is the file's sha256."""
    with store.transaction() as session:
        row = artifacts.get_artifact(session, owner, known_id("art", artifact_id))
    return _file(row, path, settings.artifacts)


@router.get("/jobs/{job_id}/report", tags=["jobs"], response_class=FileResponse, responses=openapi.REPORT)
def get_job_report(job_id: str, owner: Owner, store: Store, settings: CurrentSettings) -> Response:
    """The report of a succeeded job: every model on items that the search never saw."""
    with store.transaction() as session:
        job = get_job(session, owner, known_id("job", job_id))
        model = views.model_of(job, artifacts.list_artifacts(session, owner, job.id))
    if model is None:
        raise RefusalError(404, "no_report", f"the job is {job.status}; a report exists once it has succeeded")
    return _file(model, REPORT_FILE, settings.artifacts)


def _file(row: tables.Artifact, path: str, root: Path) -> FileResponse:
    entry = next((each for each in row.manifest["files"] if each["path"] == path), None)
    if entry is None:
        raise RefusalError(404, "not_found", f"artifact {row.id} has no file {path[:200]!r}")
    folder = (root / row.location).resolve()
    file = (folder / path).resolve()
    if not file.is_relative_to(folder) or not file.is_file():
        raise RefusalError(404, "file_missing", f"the service has lost {path[:200]!r} of artifact {row.id}")
    guessed = mimetypes.guess_type(path)[0] or ""
    media_type = guessed if guessed in SHOWN_TYPES else "application/octet-stream"
    return FileResponse(file, media_type=media_type, headers={"ETag": f'"{entry["sha256"]}"'})
