"""Faults on demand and the log of requests, as an ASGI wrapper around the stand-in. Knows nothing of repositories."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

RATE_LIMITED = {
    "RateLimit": '"api";r=0;t=1',
    "RateLimit-Policy": '"fixed window";"api";q=500;w=300',
    "Retry-After": "1",
}


@dataclass
class Fault:
    """What goes wrong for requests of that method ("*": any) and path, `times` times after the first `after` of them.

    status: answered so, and nothing is done. drop: nothing is done, no answer. lose: it is done, but the answer
    is lost. truncate: the body ends after `size` bytes. corrupt: the body's first byte is another. slow: a pause
    of `seconds` before every chunk.
    """

    kind: Literal["status", "drop", "lose", "truncate", "corrupt", "slow"]
    method: str
    path: str
    times: int = 1
    after: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    size: int = 100
    seconds: float = 0.05
    hits: int = 0

    def strikes(self, method: str, path: str) -> bool:
        """Whether it hits this request; every matching request counts."""
        if self.method not in ("*", method) or re.search(self.path, path) is None:
            return False
        self.hits += 1
        return self.after < self.hits <= self.after + self.times


def rate_limit(method: str, path: str, times: int = 1, after: int = 0) -> Fault:
    """429 as the Hub sends it."""
    return Fault("status", method, path, times, after, status=429, headers=dict(RATE_LIMITED))


@dataclass
class Request:
    """A request as the stand-in saw it; `status` is 0 where no answer was sent."""

    method: str
    path: str
    range: str
    authorised: bool
    status: int = 0
    received: int = 0
    sent: int = 0


class Faulty:
    """The app with its faults and its log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.faults: list[Fault] = []
        self.requests: list[Request] = []

    @contextmanager
    def failing(self, *faults: Fault) -> Iterator[None]:
        """Inside, these faults strike."""
        self.faults = list(faults)
        try:
            yield
        finally:
            self.faults = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        path = scope["path"] + (f"?{scope['query_string'].decode()}" if scope["query_string"] else "")
        request = Request(scope["method"], path, headers.get("range", ""), "authorization" in headers)
        self.requests.append(request)
        struck = [fault for fault in self.faults if fault.strikes(request.method, path)]
        await self._answer(scope, _counting(receive, request), _Sender(send, request), struck[0] if struck else None)

    async def _answer(self, scope: Scope, receive: Receive, send: "_Sender", fault: Fault | None) -> None:
        match fault.kind if fault else None:
            case "status":
                assert fault is not None
                headers = [(name.lower().encode(), value.encode()) for name, value in fault.headers.items()]
                await send({"type": "http.response.start", "status": fault.status, "headers": headers})
                await send({"type": "http.response.body", "body": b'{"error":"a fault on demand"}'})
            case "drop":
                await send.hang_up()
            case "lose":
                await self._app(scope, receive, _discard)
                await send.hang_up()
            case _:
                send.fault = fault
                try:
                    await self._app(scope, receive, send)
                except _HungUpError:
                    return


class _HungUpError(Exception):
    """The answer was cut off on purpose."""


class _Sender:
    """Sends on, counts, and spoils what its fault wants spoiled."""

    def __init__(self, send: Send, request: Request) -> None:
        self._send, self._request = send, request
        self.fault: Fault | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._request.status = message["status"]
        else:
            message = await self._spoiled(message)
            self._request.sent += len(message.get("body", b""))
        await self._send(message)

    async def hang_up(self) -> None:
        """Announce a body that never comes: the server then closes the connection."""
        head: dict[str, Any] = {"type": "http.response.start", "status": 200}
        await self._send(head | {"headers": [(b"content-length", b"1000")]})

    async def _spoiled(self, message: Message) -> Message:
        body: bytes = message.get("body", b"")
        match self.fault:
            case Fault(kind="slow", seconds=seconds):
                await asyncio.sleep(seconds)
            case Fault(kind="corrupt") if body and self._request.sent == 0:
                return {**message, "body": bytes([body[0] ^ 1]) + body[1:]}
            case Fault(kind="truncate", size=size) if self._request.sent + len(body) > size:
                rest = body[: max(0, size - self._request.sent)]
                self._request.sent += len(rest)
                await self._send({"type": "http.response.body", "body": rest, "more_body": True})
                raise _HungUpError
        return message


async def _discard(message: Message) -> None:
    return None


def _counting(receive: Receive, request: Request) -> Receive:
    async def counted() -> Message:
        message = await receive()
        request.received += len(message.get("body", b""))
        return message

    return counted
