"""`/v1/zoos`: stored zoos."""

from typing import Annotated, Any

from fastapi import APIRouter, Response

from api import openapi, schemas, views
from api.bodies import Body
from api.dependencies import DEFAULT_LIMIT, CurrentSettings, Hub, Limit, Owner, Store, cursor, zoo_key
from glue.records import zoos
from glue.references.resolve import check_zoo
from glue.specs.zoo import ZooSpec

router = APIRouter(prefix="/v1/zoos", tags=["zoos"])


@router.post("", status_code=201, openapi_extra=openapi.body(ZooSpec, openapi.ZOO_EXAMPLE), responses=openapi.REPLACED)
def put_zoo(
    body: Body, owner: Owner, store: Store, settings: CurrentSettings, hub: Hub, response: Response
) -> schemas.Zoo:
    """Store a zoo under its name, or replace the one of that name. Its models are looked into first."""
    spec = ZooSpec.parse(body)
    check_zoo(spec, settings.roots, hub)
    with store.transaction() as session:
        row, created = zoos.put_zoo(session, owner, spec)
        response.status_code = 201 if created else 200
        response.headers["Location"] = f"/v1/zoos/{row.id}"
        return views.zoo(row)


@router.get("", response_model=schemas.ZooPage)
def list_zoos(
    owner: Owner, store: Store, after: Annotated[str | None, cursor("zoo")] = None, limit: Limit = DEFAULT_LIMIT
) -> dict[str, Any]:
    """List zoos, newest first."""
    with store.transaction() as session:
        rows = zoos.list_zoos(session, owner, after, limit + 1)
        return views.page(rows, limit, views.zoo, lambda row: row.id)


@router.get("/{zoo}")
def get_zoo(zoo: str, owner: Owner, store: Store) -> schemas.Zoo:
    """One zoo, by its id or its name."""
    with store.transaction() as session:
        return views.zoo(zoos.get_zoo(session, owner, zoo_key(zoo)))


@router.delete("/{zoo}", status_code=204)
def delete_zoo(zoo: str, owner: Owner, store: Store) -> None:
    """Forget a zoo. Jobs keep their own copy."""
    with store.transaction() as session:
        zoos.delete_zoo(session, owner, zoo_key(zoo))
