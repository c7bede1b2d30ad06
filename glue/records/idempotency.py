"""Answers kept for requests with an Idempotency-Key, so that a repetition is answered alike and done once.

`find_reply` opens the request's transaction and keeps the key locked until it ends; `store_reply` closes it.
Source: draft-ietf-httpapi-idempotency-key-header-06, section 2.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from glue.records.database import CLOCK
from glue.records.errors import KeyInUseError, KeyReusedError
from glue.records.tables import IdempotencyKey
from glue.specs.digests import canonical_json

KEPT = timedelta(hours=24)


@dataclass(frozen=True)
class Reply:
    """What was answered: `status`, the `location` of what was made, and the `body`."""

    fingerprint: str
    status: int
    location: str
    body: dict[str, Any]

    def require_same(self, fingerprint: str) -> None:
        """Check that the key is used for the same request again.

        Raises:
            KeyReusedError: the request is another one.
        """
        if self.fingerprint != fingerprint:
            raise KeyReusedError("this Idempotency-Key was used for another request; choose a fresh key")


def find_reply(session: Session, owner: str, key: str) -> Reply | None:
    """The reply to the owner's earlier request with this key, or none; holds the key until the transaction ends.

    Raises:
        KeyInUseError: a request with this key is being answered at this moment.
    """
    lock = func.pg_try_advisory_xact_lock(func.hashtextextended(canonical_json([owner, key]), 1))
    if not session.execute(select(lock)).scalar_one():
        raise KeyInUseError("a request with this Idempotency-Key is being answered; try again in a moment")
    mine = (IdempotencyKey.owner == owner, IdempotencyKey.key == key)
    columns = (IdempotencyKey.fingerprint, IdempotencyKey.status, IdempotencyKey.location, IdempotencyKey.body)
    row = session.execute(select(*columns).where(*mine, IdempotencyKey.created_at > CLOCK - KEPT)).first()
    return Reply(*row) if row else None


def store_reply(
    session: Session, owner: str, key: str, fingerprint: str, status: int, location: str, body: dict[str, Any]
) -> None:
    """Keep the answer for a day; what is older goes.

    Raises:
        KeyReusedError: the key has an answer already, so this request must not have been done again.
    """
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at <= CLOCK - KEPT))
    values = {"fingerprint": fingerprint, "status": status, "location": location, "body": body}
    statement = insert(IdempotencyKey).values(owner=owner, key=key, **values).on_conflict_do_nothing()
    if session.scalar(statement.returning(IdempotencyKey.key)) is None:
        raise KeyReusedError("this Idempotency-Key has an answer already")
