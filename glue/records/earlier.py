"""What an earlier job's searches found, for a later job to start from. Reads only."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from glue.records.errors import NotFoundError
from glue.records.jobs import get_job
from glue.records.leases import TRIAL_KIND, TRIAL_STAGE
from glue.records.tables import TERMINAL, Stage, Unit
from glue.specs.errors import InvalidInputError, Problem

PLACE = "/search/warm_start"


def scored_trials(session: Session, owner: str, job_id: str) -> list[dict[str, Any]]:
    """The payloads of the owner's earlier job's candidates that were scored on all items, the best first.

    Raises:
        InvalidInputError: the owner has no such job, it has not ended, or no search of it scored a candidate.
    """
    try:
        job = get_job(session, owner, job_id)
    except NotFoundError:
        raise _refused("unknown_job", f"there is no job {job_id}", "GET /v1/jobs lists yours") from None
    if job.status not in TERMINAL:
        detail = f"job {job_id} has not ended: it is {job.status}"
        raise _refused("job_not_ended", detail, "wait for its end, or cancel it: what it has scored is kept")
    of = (Unit.job_id == job_id, Stage.name == TRIAL_STAGE, Unit.kind == TRIAL_KIND, Unit.state == "succeeded")
    statement = select(Unit.payload, Unit.result).join(Stage, Stage.id == Unit.stage_id).where(*of).order_by(Unit.id)
    rows = session.execute(statement).all()
    scored = [(payload, result) for payload, result in rows if result and "share" not in payload]
    if not scored:
        raise _refused("no_trials", f"no search of job {job_id} scored a candidate", "name a job whose search began")
    return [payload for payload, _ in sorted(scored, key=lambda row: -row[1]["score"]["mean"])]


def refuse_members(job_id: str) -> InvalidInputError:
    """No candidate of the earlier job is made of the later one's members."""
    detail = f"no candidate of job {job_id} is made of this zoo's members alone"
    return _refused("other_members", detail, "start from a job over the same members, by their names in the zoo")


def _refused(code: str, detail: str, fix: str) -> InvalidInputError:
    return InvalidInputError(f"{detail}; {fix}", [Problem(PLACE, code, detail, fix)])
