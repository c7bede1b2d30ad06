"""The OpenAPI document beyond what FastAPI derives: bodies that we read ourselves, problems, examples."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api import schemas
from api.event_stream import MEDIA_TYPE as EVENT_STREAM_TYPE
from api.problems import MEDIA_TYPE as PROBLEM_TYPE
from glue.specs.build import BuildJobSpec, BuildRequest
from glue.specs.job import JobRequest, JobSpec
from glue.specs.publish import HubTokenRequest, PublishJobSpec, PublishRequest
from glue.specs.zoo import ZooSpec

DESCRIPTION = """\
Model-GLUE as a service: a zoo of fine-tuned language models in, one better model out.

Every route but health needs `Authorization: Bearer mgl_…`, and shows only what belongs to that key's owner.
Errors are problems (RFC 9457) with a stable `code`, every mistake at once, each with a `pointer` and a `fix`.
Lists are newest first and paged by `after` and `limit`. Every answer carries `X-Request-Id`.
"""
TAGS = [
    {"name": "zoos", "description": "Named lists of models."},
    {"name": "jobs", "description": "Submitted specs, as they run."},
    {"name": "artifacts", "description": "Finished folders, named by their content."},
    {"name": "hub", "description": "What the service may do for you on the Hugging Face Hub."},
    {"name": "workers", "description": "The processes that do the work."},
    {"name": "health", "description": "For whoever keeps the service running."},
]

ZOO_EXAMPLE = {
    "name": "small",
    "base": {"source": "/models/base"},
    "members": [
        {"name": "math-a", "source": "/models/math-a", "domains": ["math"]},
        {"name": "code-a", "source": "/models/code-a", "domains": ["code"], "prompts": ["code:rev abc>"]},
    ],
}
JOB_EXAMPLE = {
    "kind": "model_glue",
    "zoo": "small",
    "seed": 42,
    "labels": {"env": "dev"},
    "proxy": {"include_path": "/tasks", "tasks": [{"task": "small_math", "limit": 100}]},
    "report": {"include_path": "/tasks", "tasks": [{"task": "small_math_report"}]},
}

Responses = dict[int | str, dict[str, Any]]

REPLACED: Responses = {200: {"model": schemas.Zoo, "description": "The zoo of that name was replaced."}}
EVENT_STREAM: Responses = {
    200: {"content": {EVENT_STREAM_TYPE: {"schema": {"type": "string"}}}},
    204: {"description": "A stream asked for behind the last event of a job that has ended."},
}
FILE: Responses = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "The part that `Range` asked for."},
}
REPORT: Responses = {200: {"content": {"application/json": {"schema": {"type": "object"}}}}}

_PROBLEM = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
PROBLEMS: Responses = {
    401: {"description": "No valid key.", "content": _PROBLEM},
    404: {"description": "No such record, or it belongs to somebody else.", "content": _PROBLEM},
    422: {"description": "Something in the request is wrong; `errors` tell what.", "content": _PROBLEM},
    "default": {"description": "Any other problem.", "content": _PROBLEM},
}


def body(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """The request body of a route that reads it itself."""
    schema = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": schema, "application/yaml": schema}}}


def operation_id(route: APIRoute) -> str:
    """The handler's name, which is a good name for a client's method."""
    return route.name


def install(app: FastAPI) -> None:
    """Let the app's document hold the models that only our own references name."""
    derive: Callable[[], dict[str, Any]] = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = derive()
            known = found.setdefault("components", {}).setdefault("schemas", {})
            app.openapi_schema = found
            for name, schema in _own_schemas().items():
                known.setdefault(name, schema)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _own_schemas() -> dict[str, Any]:
    models: list[type[BaseModel]] = [
        JobRequest,
        BuildRequest,
        PublishRequest,
        JobSpec,
        BuildJobSpec,
        PublishJobSpec,
        ZooSpec,
        HubTokenRequest,
        schemas.Problem,
    ]
    modes = [(model, "validation") for model in models]
    _, definitions = models_json_schema(modes, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    own: dict[str, Any] = definitions["$defs"]
    return own
