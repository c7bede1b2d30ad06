"""A name for every request, echoed in its answer and in our log, and the headers that every answer carries."""

import re
from contextvars import ContextVar

from ulid import ULID

HEADER = "X-Request-Id"

_GIVEN = re.compile(r"[A-Za-z0-9._-]{1,128}")
_current: ContextVar[str] = ContextVar("request_id", default="")


def current_request_id() -> str:
    """The id of the request that is being answered."""
    return _current.get()


def begin_request(given: str | None) -> str:
    """Take the caller's id, or where it gave none that is plain text, a fresh one."""
    request_id = given if given and _GIVEN.fullmatch(given) else f"req_{ULID()}"
    _current.set(request_id)
    return request_id
