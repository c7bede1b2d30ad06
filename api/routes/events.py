"""`/v1/jobs/{id}/events`: what happened to a job, as pages or as a stream."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from api import openapi, schemas, views
from api.dependencies import CurrentSettings, Owner, Store, known_id
from api.event_stream import BATCH, MEDIA_TYPE, Batch, StreamTimes, event_stream
from glue.records.database import Database
from glue.records.events import list_events
from glue.records.jobs import get_job
from glue.records.tables import TERMINAL

MAX_SEQ = 2**63 - 1

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

Seq = Annotated[int, Query(ge=0, le=MAX_SEQ, description="Only events with a larger `seq`.")]


@router.get("/{job_id}/events", response_model=schemas.EventPage, responses=openapi.EVENT_STREAM)
def list_job_events(
    job_id: str,
    owner: Owner,
    store: Store,
    settings: CurrentSettings,
    request: Request,
    after: Seq = 0,
    limit: Annotated[int, Query(ge=1, le=BATCH)] = BATCH,
    last_event_id: Annotated[int | None, Header(ge=0, le=MAX_SEQ, description="For streams: the last id seen.")] = None,
) -> Response | dict[str, Any]:
    """What happened to a job, oldest first. With `Accept: text/event-stream` it is sent as it happens.

    A stream ends behind the job's last event; asked again there, it answers 204. Earlier it ends, after
    minutes, with an event `reconnect`: connect again with `Last-Event-ID`.
    """
    known_id("job", job_id)
    if MEDIA_TYPE in request.headers.get("accept", ""):
        return _stream(store, settings.stream_times, owner, job_id, after if last_event_id is None else last_event_id)
    with store.transaction() as session:
        get_job(session, owner, job_id)
        rows = list_events(session, job_id, after, limit + 1)
        found = views.page(rows, limit, views.event, lambda row: str(row.seq))
    # Events go on coming, so there is always a place to ask on from.
    return found | {"next_cursor": str(rows[:limit][-1].seq if rows else after)}


def _stream(store: Database, times: StreamTimes, owner: str, job_id: str, after: int) -> Response:
    def read(behind: int) -> Batch:
        with store.transaction() as session:
            # The status first: whatever it is, the events that led to it are then in the answer.
            ended = get_job(session, owner, job_id).status in TERMINAL
            rows = list_events(session, job_id, behind, BATCH)
            return Batch([views.event(row) for row in rows], last=ended and len(rows) < BATCH)

    first = read(after)
    if first.last and not first.events:
        # Tells a browser's EventSource not to come back.
        return Response(status_code=204)
    return StreamingResponse(
        event_stream(read, after, times), media_type=MEDIA_TYPE, headers={"X-Accel-Buffering": "no"}
    )
