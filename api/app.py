"""The API's application: `uvicorn api.app:app`. Loads no torch; what it is told stands in the environment."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from api import openapi, problems
from api.dashboard import pages
from api.middleware import Surroundings
from api.routes import artifacts, events, health, hub_token, jobs, preflight, workers, zoos
from api.settings import Settings
from glue.artifacts.storage import ArtifactStorage
from glue.records.database import Database
from glue.telemetry.logs import configure_logs
from glue.telemetry.metrics import serve_metrics
from glue.telemetry.traces import flush_traces

# As many as there are threads that can run a handler, so that none waits for a connection.
POOL_SIZE = 30


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; without settings it reads them from the environment when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.settings = told = settings or Settings()
        if told.log_format:
            configure_logs()
        serve_metrics(told.metrics_port)
        app.state.storage = ArtifactStorage(told.artifacts_url) if told.artifacts_url else None
        app.state.database = Database(app.state.settings.database_url, POOL_SIZE)
        yield
        app.state.database.dispose()
        flush_traces()

    app = FastAPI(
        title="Model-GLUE",
        version=version("model-glue"),
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        generate_unique_id_function=openapi.operation_id,
        lifespan=lifespan,
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    for resource in (zoos, jobs, preflight, events, artifacts, workers, hub_token):
        app.include_router(resource.router, responses=openapi.PROBLEMS)
    app.include_router(health.router)
    pages.install(app)
    app.add_middleware(Surroundings)
    problems.install(app)
    openapi.install(app)
    return app


app = create_app()
