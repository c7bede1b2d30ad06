"""Every error as RFC 9457 problem+json with a stable code. What the errors are about is not known here."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api.request_ids import current_request_id
from glue.records.errors import JobFinishedError, KeyInUseError, KeyReusedError, NotFoundError, RefusedError
from glue.specs.errors import Fault, GlueError, Problem

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:model-glue:problem:"

_STATUSES: Mapping[type[RefusedError], int] = {
    NotFoundError: 404,
    JobFinishedError: 409,
    KeyInUseError: 409,
    KeyReusedError: 422,
}
_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_log = logging.getLogger(__name__)


class RefusalError(Exception):
    """A request that is not answered as asked; `errors` are the mistakes found in it."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: Sequence[Problem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.errors, self.headers = tuple(errors), headers


def problem_response(refusal: RefusalError, instance: str) -> JSONResponse:
    """The answer for a refusal; `instance` is the path that was asked for."""
    body = {
        "type": TYPE_PREFIX + refusal.code,
        "title": HTTPStatus(refusal.status).phrase,
        "status": refusal.status,
        "detail": refusal.detail,
        "instance": instance,
        "code": refusal.code,
        "errors": [asdict(error) for error in refusal.errors],
        "request_id": current_request_id(),
    }
    return JSONResponse(body, refusal.status, refusal.headers, MEDIA_TYPE)


def internal_error(error: Exception, instance: str) -> JSONResponse:
    """The answer for a fault of ours; the stack trace goes to the log, under the request's id."""
    _log.error("request %s failed", current_request_id(), exc_info=error)
    detail = "the service made a mistake; it is in its log under this request_id"
    return problem_response(RefusalError(500, "internal", detail), instance)


def install(app: FastAPI) -> None:
    """Answer every error of the app's routes by a problem."""
    app.add_exception_handler(RefusalError, _handle)
    app.add_exception_handler(GlueError, _handle)
    app.add_exception_handler(RequestValidationError, _handle)
    app.add_exception_handler(HTTPException, _handle)
    app.add_exception_handler(IntegrityError, _handle)
    app.add_exception_handler(OperationalError, _handle)
    app.add_exception_handler(PoolTimeoutError, _handle)


def _handle(request: Request, error: Exception) -> JSONResponse:
    refusal = _refusal_of(error)
    if refusal is None:
        return internal_error(error, request.url.path)
    if refusal.status == HTTPStatus.METHOD_NOT_ALLOWED:
        # Starlette names the methods of one route, but several may share a path.
        refusal.headers = {"Allow": ", ".join(_allowed_methods(request))}
    return problem_response(refusal, request.url.path)


def _allowed_methods(request: Request) -> list[str]:
    asked = ((method, {**request.scope, "method": method}) for method in _METHODS)
    return [
        method for method, scope in asked if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    ]


def _refusal_of(error: Exception) -> RefusalError | None:
    match error:
        case RefusalError():
            return error
        case RefusedError():
            return RefusalError(_STATUSES.get(type(error), 409), error.code, error.detail, error.problems)
        case GlueError() if error.fault is Fault.USER:
            return RefusalError(422, error.reason, error.detail, error.problems)
        case GlueError() if error.fault is Fault.TRANSIENT:
            return RefusalError(503, error.reason, error.detail, error.problems, headers={"Retry-After": "5"})
        case RequestValidationError():
            problems = tuple(_parameter_problems(error.errors()))
            return RefusalError(422, "invalid_parameter", f"{problems[0].pointer}: {problems[0].detail}", problems)
        case HTTPException():
            return _http_refusal(error)
        case IntegrityError():
            return RefusalError(409, "conflict", "what the request refers to was changed meanwhile; try again")
        case OperationalError() | PoolTimeoutError():
            _log.warning("request %s: the database does not answer: %s", current_request_id(), error)
            detail = "the database does not answer; try again"
            return RefusalError(503, "unavailable", detail, headers={"Retry-After": "1"})
    return None


def _parameter_problems(errors: Iterable[Any]) -> Iterable[Problem]:
    for error in errors:
        pointer = "".join(f"/{part}" for part in error["loc"])
        yield Problem(pointer, error["type"], error["msg"], "see /openapi.json for what is allowed")


def _http_refusal(error: HTTPException) -> RefusalError:
    status = HTTPStatus(error.status_code)
    details = {404: "there is nothing at this path", 405: "this path does not know that method"}
    return RefusalError(status, status.name.lower(), details.get(status, str(error.detail)), headers=error.headers)
