"""A job's events as server-sent events: what is recorded, then what comes. Knows no table and no route.

Postgres is asked again and again, so a stream loses nothing that a notification could lose. The id of each
event is its number in the job; a client that comes back with the last one it saw misses none and sees none twice.
"""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import anyio
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.concurrency import run_in_threadpool

from api.schemas import Event

MEDIA_TYPE = "text/event-stream"
BATCH = 500
PING = ": ping\n\n"
RECONNECT = "event: reconnect\ndata: {}\n\n"
RETRY = "retry: 1000\n\n"


@dataclass(frozen=True)
class Batch:
    """The events behind a number, at most `BATCH`; `last` when none can follow them."""

    events: Sequence[Event]
    last: bool


@dataclass(frozen=True)
class StreamTimes:
    """Seconds between questions to Postgres, of silence before a ping, and of a connection's whole life."""

    poll: float
    ping: float
    stream: float


async def event_stream(read: Callable[[int], Batch], after: int, times: StreamTimes) -> AsyncIterator[str]:
    """Frames of the events numbered above `after`. Ends behind the job's last event, or with `reconnect`.

    `read` gives the events behind a number; it runs in a thread and holds no transaction between calls.
    """
    opened = spoken = time.monotonic()
    yield RETRY
    while time.monotonic() - opened < times.stream:
        try:
            batch = await run_in_threadpool(read, after)
        except (OperationalError, PoolTimeoutError):
            # The client comes back and is told 503 until the database answers again.
            break
        for event in batch.events:
            yield _frame(event)
            after = event.seq
        if batch.last:
            return
        if batch.events:
            spoken = time.monotonic()
        elif time.monotonic() - spoken >= times.ping:
            yield PING
            spoken = time.monotonic()
        if len(batch.events) < BATCH:
            await anyio.sleep(times.poll)
    yield RECONNECT


def _frame(event: Event) -> str:
    return f"id: {event.seq}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
