"""What routes ask for: settings, the database, the caller's owner, parameters with their limits."""

import re
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import TypeAdapter, ValidationError

from api.problems import RefusalError
from api.settings import Settings
from glue.records.database import Database
from glue.records.hub_tokens import open_token
from glue.records.keys import find_owner
from glue.references.hub_access import HubAccess, endpoint_of_environment
from glue.specs.base import Name

_bearer = HTTPBearer(auto_error=False, scheme_name="API key", description="`Authorization: Bearer mgl_…`")


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


CurrentSettings = Annotated[Settings, Depends(_settings)]
Store = Annotated[Database, Depends(_database)]


def _owner(store: Store, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str:
    # A transaction of its own: what the request does later may be slow, or a stream that stays open.
    owner = None
    if credentials is not None and credentials.credentials.isascii():
        with store.transaction() as session:
            owner = find_owner(session, credentials.credentials)
    if owner is None:
        detail = "no valid API key; send it as 'Authorization: Bearer mgl_…'"
        raise RefusalError(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})
    return owner


Owner = Annotated[str, Depends(_owner)]


def _hub(owner: Owner, store: Store, settings: CurrentSettings) -> HubAccess:
    with store.transaction() as session:
        token = open_token(session, settings.vault, owner)
    return HubAccess(endpoint_of_environment(), settings.hub_cache, token=token)


Hub = Annotated[HubAccess, Depends(_hub)]

_NAME: TypeAdapter[str] = TypeAdapter(Name)

ULID = "[0-9A-Z]{26}"
DEFAULT_LIMIT = 50

Limit = Annotated[int, Query(ge=1, le=100, description="At most so many.")]


def cursor(prefix: str) -> Any:
    """The query parameter `after` of a list whose ids have that prefix."""
    return Query(pattern=f"^{prefix}_{ULID}$", description="The `next_cursor` of the page before.")


def known_id(prefix: str, value: str) -> str:
    """The id, if it has the form of one; anything else names nothing, and may be no text that Postgres takes.

    Raises:
        RefusalError: 404.
    """
    if re.fullmatch(f"{prefix}_{ULID}", value) is None:
        raise RefusalError(404, "not_found", f"there is nothing of the name {value[:100]!r}")
    return value


def zoo_key(value: str) -> str:
    """A zoo's id or name, if it has the form of one.

    Raises:
        RefusalError: 404.
    """
    try:
        return _NAME.validate_python(value)
    except ValidationError:
        raise RefusalError(404, "not_found", f"there is no zoo {value[:100]!r}") from None
