"""Stored zoos. A job keeps its own copy of the spec, so a zoo may change or go while jobs run."""

from sqlalchemy import delete, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from glue.records.errors import NotFoundError
from glue.records.ids import new_id
from glue.records.locks import FRESH
from glue.records.tables import Zoo
from glue.specs.digests import digest_of
from glue.specs.zoo import ZooSpec


def put_zoo(session: Session, owner: str, spec: ZooSpec) -> tuple[Zoo, bool]:
    """Store the zoo under its name, or replace the one of that name; true if it is new."""
    fresh_id, plain = new_id("zoo"), spec.as_json()
    content = {"spec": plain, "digest": digest_of(plain)}
    statement = insert(Zoo).values(id=fresh_id, owner=owner, name=spec.name, **content)
    replaced = statement.on_conflict_do_update(
        index_elements=[Zoo.owner, Zoo.name], set_={**content, "updated_at": func.now()}
    )
    zoo = session.scalars(replaced.returning(Zoo), execution_options=FRESH).one()
    return zoo, zoo.id == fresh_id


def get_zoo(session: Session, owner: str, id_or_name: str) -> Zoo:
    """The owner's zoo of that id or, failing that, of that name.

    Raises:
        NotFoundError: the owner has no such zoo.
    """
    named = or_(Zoo.id == id_or_name, Zoo.name == id_or_name)
    statement = select(Zoo).where(Zoo.owner == owner, named).order_by((Zoo.id == id_or_name).desc()).limit(1)
    zoo = session.scalar(statement)
    if zoo is None:
        raise NotFoundError(f"there is no zoo {id_or_name}")
    return zoo


def list_zoos(session: Session, owner: str, after: str | None = None, limit: int = 50) -> list[Zoo]:
    """The owner's zoos, newest first, from below the id `after`."""
    statement = select(Zoo).where(Zoo.owner == owner)
    if after is not None:
        statement = statement.where(Zoo.id < after)
    return list(session.scalars(statement.order_by(Zoo.id.desc()).limit(limit)))


def delete_zoo(session: Session, owner: str, id_or_name: str) -> None:
    """Forget the zoo; its jobs stay.

    Raises:
        NotFoundError: the owner has no such zoo.
    """
    session.execute(delete(Zoo).where(Zoo.id == get_zoo(session, owner, id_or_name).id))
