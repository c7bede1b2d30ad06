"""What a worker's metrics, traces and log lines say about a unit. Changes nothing about how it runs."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from glue.records.leases import Claim
from glue.specs.plan import UnitOutcome
from glue.telemetry import metrics
from glue.telemetry.logs import about
from glue.telemetry.traces import Attributes, unit_span

SCORE_KINDS = ("score.candidate", "score.mixture")


@dataclass
class Observation:
    """How a unit ended, as its runner says it; empty while it runs."""

    ending: str = ""

    @property
    def word(self) -> str:
        """`succeeded`, `failed`, `cancelled`, `drained` or `lost`."""
        return self.ending.split(" ", 1)[0].rstrip(",") or "lost"


@contextmanager
def observed(claim: Claim, worker_id: str) -> Iterator[Observation]:
    """One unit's run: its time, its span, and its names on every log line."""
    unit, seen, began = claim.unit, Observation(), monotonic()
    names = {"job_id": unit.job_id, "unit_id": unit.unit_id}
    place: Attributes = {"stage": unit.stage, "family": unit.family, "kind": unit.kind, "token": claim.token}
    with about(**names, worker_id=worker_id), unit_span(unit.job_id, unit.kind, {**names, **place}) as span:
        metrics.BUSY.set(1)
        try:
            yield seen
        finally:
            metrics.BUSY.set(0)
            metrics.UNITS.labels(unit.kind, seen.word).observe(monotonic() - began)
            if span is not None:
                span.set_attribute("ending", seen.word)


def count_outcome(claim: Claim, outcome: UnitOutcome) -> None:
    """A unit's outcome was written down: count the score or the bytes that it brought."""
    if claim.unit.kind in SCORE_KINDS:
        metrics.SCORES.labels(str(outcome.result.get("cache", "miss"))).inc()
    if outcome.artifact is not None:
        size = sum(file["size"] for file in outcome.artifact.manifest["files"])
        metrics.MERGED_BYTES.labels(claim.unit.kind).inc(size)


def watch(home: Path, engine_pid: Callable[[], int | None]) -> None:
    """From now on every scrape reads the engine's memory and the home's free space."""
    metrics.ENGINE_BYTES.set_function(lambda: _resident_bytes(engine_pid()))
    metrics.HOME_FREE_BYTES.set_function(lambda: _free_bytes(home))


def _resident_bytes(pid: int | None) -> int:
    if pid is None:
        return 0
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _free_bytes(home: Path) -> int:
    try:
        return shutil.disk_usage(home).free
    except OSError:
        return 0
