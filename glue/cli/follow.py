"""Follow a job to its end, with one progress bar a stage."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from glue.cli.client import Client, UnreachableError

POLL_SECONDS = 0.5
# A service that is being restarted or upgraded is back within this time; the job does not notice.
PATIENCE_SECONDS = 120.0
Answer = TypeVar("Answer")

FINISHED = ("succeeded", "failed", "cancelled")


def follow(client: Client, job_id: str, console: Console) -> dict[str, Any]:
    """Show the stages' bars until the job has ended; gives the final job.

    Raises:
        UnreachableError: the service did not answer for two minutes.
    """
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bars:
        return _until_finished(client, job_id, _Stages(bars))


def patiently(ask: Callable[[], Answer], waiting: Callable[[], None] = lambda: None) -> Answer:
    """What a question to the service gives; one that is being restarted is asked again, after each time `waiting`.

    Raises:
        UnreachableError: the service did not answer for two minutes.
    """
    began = time.monotonic()
    while True:
        try:
            return ask()
        except UnreachableError:
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise
        waiting()
        time.sleep(POLL_SECONDS)


def _until_finished(client: Client, job_id: str, stages: "_Stages") -> dict[str, Any]:
    while True:
        job = patiently(lambda: client.job(job_id), stages.waiting)
        stages.show(job)
        if job["status"] in FINISHED:
            return job
        time.sleep(POLL_SECONDS)


class _Stages:
    """A bar per stage name; the families of one stage share its bar."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def show(self, job: dict[str, Any]) -> None:
        for name in job["chain"]:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=1, start=False, note="")
            runs = [stage for stage in job["stages"] if stage["name"] == name]
            if runs:
                self._show_stage(self._tasks[name], runs, job)

    def waiting(self) -> None:
        for task in self._tasks.values():
            self._bars.update(task, note="waiting for the service")

    def _show_stage(self, task: TaskID, runs: list[dict[str, Any]], job: dict[str, Any]) -> None:
        done = sum(run["units"]["finished"] for run in runs)
        total = sum(run["units"]["total"] for run in runs)
        ended = all(run["status"] in FINISHED for run in runs)
        started = any(run["started_at"] for run in runs)
        if started:
            self._bars.start_task(task)
        note = job["status_message"] or "" if started and not ended else ""
        total = max(total, 1)
        # A stage may have had nothing to do but to end.
        self._bars.update(task, completed=total if ended and started else done, total=total, note=note)
        if ended:
            self._bars.stop_task(task)
