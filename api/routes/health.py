"""`/healthz` and `/readyz`: for whoever keeps the service running. No key is needed, and nothing is told but states."""

from fastapi import APIRouter, Response
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from api import schemas
from api.dependencies import CurrentSettings, Store
from glue.records.database import Database
from glue.records.schema import schema_is_current

REDIS_SECONDS = 1.0

router = APIRouter(tags=["health"])


@router.get("/healthz")
def get_health() -> schemas.Health:
    """The process answers."""
    return schemas.Health(status="ok")


@router.get("/readyz", responses={503: {"model": schemas.Readiness, "description": "Requests cannot be served."}})
def get_readiness(store: Store, settings: CurrentSettings, response: Response) -> schemas.Readiness:
    """Whether requests can be served. Without Redis they can, so that is only a degraded state."""
    checks = _database_checks(store) | {"redis": _redis_check(settings.redis_url)}
    if checks["postgres"] != "ok" or checks["schema"] != "ok":
        response.status_code = 503
        return schemas.Readiness(status="unavailable", checks=checks)
    return schemas.Readiness(status="degraded" if checks["redis"] == "down" else "ready", checks=checks)


def _database_checks(store: Database) -> dict[str, str]:
    try:
        with store.transaction() as session:
            current = schema_is_current(session)
    except SQLAlchemyError:
        return {"postgres": "down", "schema": "unknown"}
    return {"postgres": "ok", "schema": "ok" if current else "not at this release"}


def _redis_check(url: str) -> str:
    if not url:
        return "not configured"
    try:
        with Redis.from_url(url, socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS) as client:
            client.ping()
    except (RedisError, OSError):
        return "down"
    return "ok"
