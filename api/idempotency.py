"""A request that is done once, however often it is sent with its Idempotency-Key. Knows nothing of what is done.

Source: draft-ietf-httpapi-idempotency-key-header-06.
"""

import re
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from api.problems import RefusalError
from glue.records.idempotency import find_reply, store_reply
from glue.specs.digests import digest_of

REPLAYED_HEADER = "Idempotency-Replayed"

_FORM = re.compile(r'"([!#-~]{1,255})"|([!#-~]{1,255})')


def parse_key(header: str | None) -> str | None:
    """The key of the header, which is a quoted string; without the quotes it is taken as well.

    Raises:
        RefusalError: 400, it is empty, too long, or holds other than visible ASCII.
    """
    if header is None:
        return None
    match = _FORM.fullmatch(header)
    if match is None:
        detail = "the Idempotency-Key must have 1 to 255 visible ASCII characters; a UUID is a good choice"
        raise RefusalError(400, "invalid_idempotency_key", detail)
    return match[1] or match[2]


@dataclass(frozen=True)
class Once:
    """A request as far as it decides whether it was sent before. Without a key everything is sent the first time."""

    owner: str
    key: str | None
    operation: str
    body: Any

    def earlier(self, session: Session) -> JSONResponse | None:
        """The answer that this request had before, if it was done; holds the key until the transaction ends.

        Raises:
            KeyReusedError: the key came with another request.
            KeyInUseError: its twin is being answered at this moment.
        """
        reply = find_reply(session, self.owner, self.key) if self.key else None
        if reply is None:
            return None
        reply.require_same(self._fingerprint())
        return JSONResponse(reply.body, reply.status, {"Location": reply.location, REPLAYED_HEADER: "true"})

    def keep(self, session: Session, status: int, location: str, answer: dict[str, Any]) -> None:
        """Keep the answer, in the transaction that does what was asked."""
        if self.key:
            store_reply(session, self.owner, self.key, self._fingerprint(), status, location, answer)

    def _fingerprint(self) -> str:
        return digest_of([self.operation, self.body])
