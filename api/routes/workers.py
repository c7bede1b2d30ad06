"""`/v1/workers`: who there is to do the work."""

from typing import Any

from fastapi import APIRouter

from api import schemas, views
from api.dependencies import Owner, Store
from glue.records import workers

router = APIRouter(prefix="/v1/workers", tags=["workers"])


@router.get("", response_model=schemas.WorkerList)
def list_workers(owner: Owner, store: Store) -> dict[str, Any]:
    """All workers, as they last reported themselves."""
    with store.transaction() as session:
        return views.whole(workers.list_workers(session), views.worker)
