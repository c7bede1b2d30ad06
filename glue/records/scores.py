"""Scores that an owner's later jobs need not compute again. What a key is made of is not known here."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from glue.records.errors import LeaseLost
from glue.records.locks import hold
from glue.records.tables import Score, Unit


def find_score(session: Session, owner: str, key: str) -> dict[str, Any] | None:
    """The owner's score under this key, or none."""
    return session.scalar(select(Score.result).where(Score.owner == owner, Score.key == key))


def store_score(session: Session, owner: str, key: str, result: dict[str, Any], token: int) -> None:
    """Keep a score; one that is there already stays, because the key says all that it depends on.

    It may stand before the completion of the same unit in one transaction, not after: that ends the lease.

    Raises:
        LeaseLost: no unit is leased under this token any more.
    """
    unit_id = session.scalar(select(Unit.id).where(Unit.state == "leased", Unit.lease_token == token))
    if unit_id is None:
        raise LeaseLost(f"no unit is leased under token {token} any more")
    hold(session, unit_id, token, whole=False)
    statement = insert(Score).values(owner=owner, key=key, result=result, token=token)
    session.execute(statement.on_conflict_do_nothing())
