"""What surrounds every request: its id, headers of every answer, and the last resort for an error."""

import logging
from time import monotonic

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import internal_error
from api.request_ids import HEADER, begin_request
from glue.telemetry.logs import note
from glue.telemetry.metrics import REQUESTS

logger = logging.getLogger(__name__)

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def _account(scope: Scope, status: int, seconds: float) -> None:
    """One request in metrics and log. Paths hold ids, so it is the route that is counted."""
    route = getattr(scope.get("route"), "path", "other")
    REQUESTS.labels(scope["method"], route, str(status)).observe(seconds)
    logger.info("%s %s %d in %.1f ms", scope["method"], scope["path"], status, 1000 * seconds)


class Surroundings:
    """Plain ASGI rather than Starlette's base class, which would hold back streams and miss disconnects."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = begin_request(Headers(scope=scope).get(HEADER))
        note(request_id=request_id)
        started, began = False, monotonic()

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                _account(scope, message["status"], monotonic() - began)
                headers = MutableHeaders(scope=message)
                headers[HEADER] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            if started:
                # Half an answer is out: only closing the connection tells the client.
                raise
            await internal_error(error, scope["path"])(scope, receive, send_with_headers)
