"""The engine's side: one unit after the other from a pipe, each answered. Knows no database, broker or secret.

It ends when the pipe closes, and is killed by the kernel when the worker's thread that started it ends.
"""

import argparse
import ctypes
import errno
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Hashable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from glue.pipeline.context import Context
from glue.specs.errors import DeviceMemoryError, DiskFullError, Fault, GlueError, Reason
from glue.specs.plan import UnitOutcome, UnitRequest
from glue.telemetry.logs import about, configure_logs
from workers.engine.protocol import Answer, Done, Failed, Progress, Run, decode_run, encode_answer

logger = logging.getLogger(__name__)

Runner = Callable[[UnitRequest, Context], UnitOutcome]

_PR_SET_PDEATHSIG = 1
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Engine:
    """Runs units and keeps what the runner wants to keep between them."""

    def __init__(self, runner: str, answers: BinaryIO) -> None:
        self._runner = runner
        self._answers = answers
        self._cache: dict[Hashable, Any] = {}

    def serve(self, requests: BinaryIO) -> None:
        """Answer every request until the pipe closes."""
        for line in requests:
            run = decode_run(line)
            with about(job_id=run.request.job_id, unit_id=run.request.unit_id):
                self._serve(run)

    def _serve(self, run: Run) -> None:
        try:
            self._say(Done(self._run(run)))
        except (Exception, SystemExit) as error:
            logger.exception("unit %s of job %s failed", run.request.unit_id, run.request.job_id)
            self._say(Failed(described(error)))

    def _run(self, run: Run) -> UnitOutcome:
        # Loaded here and not at the start: what a library prints or breaks then belongs to a unit.
        module, _, function = self._runner.partition(":")
        runner: Runner = getattr(importlib.import_module(module), function)
        context = Context(Path(run.artifacts), Path(run.work), run.device, self._progress, self._cache, run.hub)
        return runner(run.request, context)

    def _progress(self, fraction: float, message: str) -> None:
        self._say(Progress(round(min(max(fraction, 0.0), 1.0), 4), message))

    def _say(self, answer: Answer) -> None:
        self._answers.write(encode_answer(answer))
        self._answers.flush()


def described(error: BaseException) -> dict[str, Any]:
    """The stored form of an error; a person sees its type and message, never a stack trace."""
    if isinstance(error, GlueError):
        return error.as_json()
    if _is_out_of_memory(error):
        return DeviceMemoryError(f"the unit needs more memory than there is: {error}").as_json()
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return DiskFullError(f"the disk is full: {error}").as_json()
    return {
        "reason": Reason.INTERNAL,
        "fault": Fault.INTERNAL,
        "detail": f"{type(error).__name__}: {error}",
        "problems": [],
    }


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    # torch raises OutOfMemoryError for devices and a bare RuntimeError for the CPU; it may not be loaded at all.
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def tie_to(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; leave at once if it has already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def offer_to_the_kernel() -> None:
    """Where memory runs out, the kernel shall take this process before the worker: it costs one unit only."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def main() -> None:
    """Serve the two pipes that were passed as file descriptors."""
    parser = argparse.ArgumentParser()
    for name in ("parent", "requests", "answers"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--runner", required=True)
    arguments = parser.parse_args()
    tie_to(arguments.parent)
    offer_to_the_kernel()
    configure_logs(f"engine {os.getpid()}")
    for descriptor in (arguments.requests, arguments.answers):
        os.set_inheritable(descriptor, False)
    with os.fdopen(arguments.requests, "rb") as requests, os.fdopen(arguments.answers, "wb") as answers:
        Engine(arguments.runner, answers).serve(requests)


if __name__ == "__main__":
    main()
