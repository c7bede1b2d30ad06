"""The dashboard's pages and files. They hold no record, so they need no key; everything comes from `/v1`."""

from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.staticfiles import StaticFiles

from api.dependencies import known_id

STATIC = Path(__file__).parent / "static"

_pages = Environment(loader=PackageLoader("api.dashboard"), autoescape=True, undefined=StrictUndefined)
router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@router.get("/")
def jobs_page() -> str:
    """The list of jobs."""
    return _pages.get_template("jobs.html").render()


@router.get("/jobs/{job_id}")
def job_page(job_id: str) -> str:
    """One job; whether there is such a job is told by the API alone."""
    return _pages.get_template("job.html").render(job_id=known_id("job", job_id))


def install(app: FastAPI) -> None:
    """Add the pages and their files to the app."""
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
