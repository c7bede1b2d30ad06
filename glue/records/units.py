"""What is known of units and of what they made by their names alone, whoever owns them."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from glue.records.tables import LIVE, Artifact, Job, Unit


def states_of(session: Session, unit_ids: Sequence[str]) -> dict[str, str]:
    """The states of these units by id; what is no unit is left out."""
    rows = session.execute(select(Unit.id, Unit.state).where(Unit.id.in_(unit_ids)))
    return {row.id: row.state for row in rows}


def locations_in_use(session: Session, locations: Sequence[str]) -> set[str]:
    """Which of these artifacts belong to jobs that have not ended."""
    alive = Job.status.in_((*LIVE, "cancelling"))
    statement = select(Artifact.location).join(Job, Job.id == Artifact.job_id)
    return set(session.scalars(statement.where(Artifact.location.in_(locations), alive)))
