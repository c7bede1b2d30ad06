"""What worker and engine say to each other: one JSON object a line. Knows nothing of pipes and processes.

worker: run  ->  engine: progress, progress, ..., then done or failed
"""

import json
from dataclasses import dataclass
from typing import Any

from glue.references.hub_access import HubAccess
from glue.specs.plan import UnitOutcome, UnitRequest


@dataclass(frozen=True)
class Run:
    """Run this unit; folders and device are the worker's, `hub` is there for units that speak to the Hub."""

    request: UnitRequest
    artifacts: str
    work: str
    device: str
    hub: HubAccess | None = None


@dataclass(frozen=True)
class Progress:
    """A running unit is so far: `fraction` from 0 to 1."""

    fraction: float
    message: str


@dataclass(frozen=True)
class Done:
    """The unit ended well."""

    outcome: UnitOutcome


@dataclass(frozen=True)
class Failed:
    """The unit ended with an error in its stored form."""

    error: dict[str, Any]


Answer = Progress | Done | Failed


def encode_run(run: Run) -> bytes:
    """A line for the engine."""
    hub = run.hub.as_json() if run.hub else None
    return _line({**vars(run), "request": run.request.as_json(), "hub": hub})


def decode_run(line: bytes) -> Run:
    """The inverse of `encode_run`."""
    value = json.loads(line)
    hub = HubAccess.from_json(value["hub"]) if value["hub"] else None
    return Run(**{**value, "request": UnitRequest.from_json(value["request"]), "hub": hub})


def encode_answer(answer: Answer) -> bytes:
    """A line for the worker.

    Raises:
        ValueError: the outcome holds a number that is not finite.
    """
    match answer:
        case Progress(fraction, message):
            return _line({"type": "progress", "fraction": fraction, "message": message})
        case Done(outcome):
            return _line({"type": "done", "outcome": outcome.as_json()})
        case Failed(error):
            return _line({"type": "failed", "error": error})


def decode_answer(line: bytes) -> Answer:
    """The inverse of `encode_answer`."""
    value = json.loads(line)
    match value["type"]:
        case "progress":
            return Progress(value["fraction"], value["message"])
        case "done":
            return Done(UnitOutcome.from_json(value["outcome"]))
        case _:
            return Failed(value["error"])


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"
