"""The Hub as a unit or a request may use it: an address, a token, a cache; and its refusals in our own words.

Only this module and those that are handed an access know the client. The token is never part of a text.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any, Self, TypeVar

import huggingface_hub.errors
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from glue.specs.errors import Fault, GlueError, InvalidInputError, Problem, Reason

Value = TypeVar("Value")
Say = Callable[[float, str], None]

DEFAULT_ENDPOINT = "https://huggingface.co"
# httpx or httpx2, whichever this major of the client stands on: its errors of transport.
TRANSPORT_ERROR: type[Exception] = huggingface_hub.errors.HTTPError  # type: ignore[attr-defined]

_TRIES = 4
_LONGEST_WAIT_SECONDS = 60.0


class HubUnavailableError(GlueError):
    """The Hub does not answer, limits our rate, or broke off; the same call may succeed later."""

    fault = Fault.TRANSIENT
    reason = Reason.HUB_UNAVAILABLE

    def __init__(self, detail: str, wait: float = 0.0) -> None:
        super().__init__(detail)
        self.wait = wait


class HubConflictError(GlueError):
    """Somebody else changed the repository at the same time; the next attempt sees their change."""

    fault = Fault.TRANSIENT
    reason = Reason.HUB_UNAVAILABLE


@dataclass(frozen=True)
class HubAccess:
    """How to reach the Hub on behalf of an owner.

    `cache` holds what was downloaded, at most `budget` bytes of it (0: no limit). `kept` are the folders in
    it that jobs still need. Without a token only public repositories are seen.
    """

    endpoint: str
    cache: Path
    budget: int = 0
    token: str | None = field(default=None, repr=False)
    kept: frozenset[str] = frozenset()

    def api(self) -> HfApi:
        """The client; it never falls back on a token of the machine."""
        return HfApi(endpoint=self.endpoint, token=self.token or False)

    def headers(self) -> dict[str, str]:
        """For requests that the client has no method for."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def identity(self) -> str:
        """A name for whoever the token stands for, from which the token does not follow."""
        return hashlib.sha256(self.token.encode()).hexdigest()[:16] if self.token else "public"

    def as_json(self) -> dict[str, Any]:
        """For the pipe to the engine, and nowhere else: it holds the token."""
        return {
            "endpoint": self.endpoint,
            "cache": str(self.cache),
            "budget": self.budget,
            "token": self.token,
            "kept": sorted(self.kept),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `as_json`."""
        return cls(value["endpoint"], Path(value["cache"]), value["budget"], value["token"], frozenset(value["kept"]))


def endpoint_of_environment() -> str:
    """The Hub's address: HF_ENDPOINT, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether the client is told to stay at home (HF_HUB_OFFLINE)."""
    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def refusals_of(subject: str) -> Iterator[None]:
    """Inside, the client's errors become ours; `subject` is what was asked for, such as a repository's name.

    Raises:
        InvalidInputError: the user has to do something: a name, a right, a token.
        HubUnavailableError: trying again may help.
        HubConflictError: the repository changed meanwhile.
    """
    try:
        yield
    except GatedRepoError:
        fix = "open its page, accept its terms with your account, and store that account's token"
        raise _invalid("gated", f"{subject} is gated and your token has no access to it", fix) from None
    except RevisionNotFoundError:
        raise _invalid("no_revision", f"{subject} has no such branch, tag or commit", "check the revision") from None
    except RepositoryNotFoundError:
        fix = "check the name; for a private repository store a token that may read it"
        raise _invalid("no_repository", f"{subject} does not exist, or your token may not see it", fix) from None
    except OfflineModeIsEnabled:
        raise HubUnavailableError(f"{subject} is not here, and this service is offline (HF_HUB_OFFLINE)") from None
    except HfHubHTTPError as error:
        raise _refusal(subject, error) from None
    except json.JSONDecodeError:
        raise HubUnavailableError(f"{subject}: what the Hub answered cannot be read") from None
    except TRANSPORT_ERROR as error:
        raise HubUnavailableError(f"{subject}: the Hub does not answer ({type(error).__name__})") from None


def patiently(step: Callable[[], Value], say: Callable[[str], None] = lambda _: None) -> Value:
    """The value of a step that may be repeated; a Hub that does not answer is asked four times, as it asks us to.

    Raises:
        HubUnavailableError: it still did not answer.
    """
    for attempt in range(1, _TRIES):
        try:
            return step()
        except HubUnavailableError as error:
            if is_offline():
                raise
            wait = min(error.wait or 2.0 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
            say(f"{error.detail}; again in {wait:.0f} s")
            sleep(wait)
    return step()


def _refusal(subject: str, error: HfHubHTTPError) -> GlueError:
    status = error.response.status_code if error.response is not None else 0
    if status == 401:
        fix = "make a new token on the Hub and store it"
        return _invalid("token_refused", f"{subject}: the Hub does not know the token, or it has expired", fix)
    if status == 403:
        fix = "store a token with the right to write there, or choose another repository"
        return _invalid("no_right", f"{subject}: the token has not the right for this", fix)
    if status in (409, 412):
        return HubConflictError(f"{subject} was changed by somebody else at the same time")
    if status == 429 or status >= 500 or status == 0:
        return HubUnavailableError(f"{subject}: the Hub answered {status}", _asked_to_wait(error))
    message = getattr(error, "server_message", None) or f"the Hub answered {status}"
    return _invalid("refused", f"{subject}: {message}"[:500], "see the message")


def _asked_to_wait(error: HfHubHTTPError) -> float:
    """Seconds that the answer asks to wait: of RateLimit's `t=`, else of Retry-After; 0 where it does not say."""
    headers = error.response.headers if error.response is not None else {}
    for part in headers.get("ratelimit", "").split(";"):
        if part.strip().startswith("t=") and part.strip()[2:].isdigit():
            return float(part.strip()[2:])
    after = headers.get("retry-after", "")
    return float(after) if after.isdigit() else 0.0


def _invalid(code: str, detail: str, fix: str) -> InvalidInputError:
    return InvalidInputError(f"{detail}; {fix}", [Problem("", code, detail, fix)])
