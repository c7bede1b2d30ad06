"""Finished folders as their owner sees them. They are recorded by the completion of the unit that made them."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from glue.records.errors import NotFoundError
from glue.records.tables import Artifact


def get_artifact(session: Session, owner: str, artifact_id: str) -> Artifact:
    """The owner's artifact.

    Raises:
        NotFoundError: the owner has no such artifact.
    """
    artifact = session.scalar(select(Artifact).where(Artifact.owner == owner, Artifact.id == artifact_id))
    if artifact is None:
        raise NotFoundError(f"there is no artifact {artifact_id}")
    return artifact


def list_artifacts(session: Session, owner: str, job_id: str) -> list[Artifact]:
    """The artifacts of one of the owner's jobs, in the order of their making."""
    statement = select(Artifact).where(Artifact.owner == owner, Artifact.job_id == job_id)
    return list(session.scalars(statement.order_by(Artifact.id)))
