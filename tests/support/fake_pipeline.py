"""A pipeline without models: units do what their payload says, advances give the smallest valid results.

For `GLUE_ENGINE_RUNNER=tests.support.fake_pipeline:run`. `payload["do"]` names one of the deeds below.
"""

import ctypes
import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from glue.pipeline.context import Context
from glue.specs.errors import EvaluationError
from glue.specs.expression import Member
from glue.specs.plan import ADVANCE, UnitOutcome, UnitRequest
from glue.specs.results import (
    BaselinesResult,
    Family,
    InspectedModel,
    MergeResult,
    MixtureResult,
    ReportResult,
    ResolveResult,
    ScoredCandidate,
    SearchResult,
    SimilarityResult,
    SuiteScore,
)

RUNNER = "tests.support.fake_pipeline:run"
MEMBER = "a"

_SCORE = SuiteScore(suite="0" * 64, mean=0.5, stderr=0.1, tasks=())
_SCORED = ScoredCandidate(name=MEMBER, expression=Member(name=MEMBER), score=_SCORE)


def run(request: UnitRequest, context: Context) -> UnitOutcome:
    """Run one unit; every run of a unit with a `log` appends a line to that file."""
    if "log" in request.payload:
        with Path(request.payload["log"]).open("a") as log:
            log.write(f"{request.payload.get('name', '')} {os.getpid()}\n")
    if request.kind == ADVANCE:
        return UnitOutcome(_ADVANCES[request.stage](request), finished=True)
    if request.kind == "score.candidate" and "do" not in request.payload:
        return UnitOutcome({**request.payload, "score": _SCORE.as_json()})
    return UnitOutcome(_DEEDS[request.payload.get("do", "nothing")](request, context))


def _nothing(request: UnitRequest, context: Context) -> dict[str, Any]:
    return {"pid": os.getpid()}


def _sleep(request: UnitRequest, context: Context) -> dict[str, Any]:
    seconds = float(request.payload["seconds"])
    started = time.monotonic()
    while (passed := time.monotonic() - started) < seconds:
        context.progress(passed / seconds, f"slept {passed:.1f} s")
        time.sleep(0.02)
    return {"pid": os.getpid()}


def _wait_for(request: UnitRequest, context: Context) -> dict[str, Any]:
    """Until the file `path` exists."""
    while not Path(request.payload["path"]).exists():
        context.progress(0.5, "waiting")
        time.sleep(0.02)
    return {"pid": os.getpid()}


def _fail_once(request: UnitRequest, context: Context) -> dict[str, Any]:
    """Crash unless the file `path` exists; make it first."""
    path = Path(request.payload["path"])
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"pid": os.getpid()}


def _kill_self(request: UnitRequest, context: Context) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _segfault(request: UnitRequest, context: Context) -> dict[str, Any]:
    ctypes.string_at(0)
    raise AssertionError


def _exit(request: UnitRequest, context: Context) -> dict[str, Any]:
    os._exit(3)


def _kill_worker(request: UnitRequest, context: Context) -> dict[str, Any]:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
    raise AssertionError


def _hang(request: UnitRequest, context: Context) -> dict[str, Any]:
    """Deadlock, unless the file `path` exists; make it first. With a child that ignores everything but SIGKILL."""
    path = Path(request.payload["path"])
    if not path.exists():
        context.progress(0.3, "taking the lock")
        child = subprocess.Popen(["sh", "-c", "trap '' TERM INT HUP; sleep 600"])
        path.write_text(str(child.pid))
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    return {"pid": os.getpid()}


def _write_and_fail(request: UnitRequest, context: Context) -> dict[str, Any]:
    _write(context)
    raise EvaluationError("it has written a shard")


def _write_and_wait(request: UnitRequest, context: Context) -> dict[str, Any]:
    _write(context)
    return _sleep(replace(request, payload={"seconds": 60}), context)


def _write(context: Context) -> None:
    (context.work / "model").mkdir(parents=True)
    (context.work / "model" / "shard").write_bytes(bytes(1000))


def _close_pipe(request: UnitRequest, context: Context) -> dict[str, Any]:
    for descriptor in range(3, 64):
        try:
            os.close(descriptor)
        except OSError:
            continue
    time.sleep(60)
    raise AssertionError


def _user_error(request: UnitRequest, context: Context) -> dict[str, Any]:
    raise EvaluationError("the suite is wrong")


def _bug(request: UnitRequest, context: Context) -> dict[str, Any]:
    raise ValueError("a bug of ours")


def _disk_full(request: UnitRequest, context: Context) -> dict[str, Any]:
    raise OSError(errno.ENOSPC, "No space left on device")


def _memory(request: UnitRequest, context: Context) -> dict[str, Any]:
    raise MemoryError


def _cpu_allocator(request: UnitRequest, context: Context) -> dict[str, Any]:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory")


def _not_a_number(request: UnitRequest, context: Context) -> dict[str, Any]:
    return {"mean": float("nan")}


def _not_storable(request: UnitRequest, context: Context) -> dict[str, Any]:
    return {"text": "Postgres stores no \0 in JSON"}


def _grandchild(request: UnitRequest, context: Context) -> dict[str, Any]:
    """Start a process that ignores everything but SIGKILL, write its number to `path`, and wait with it."""
    child = subprocess.Popen(["sh", "-c", "trap '' TERM INT HUP; sleep 600"])
    Path(request.payload["path"]).write_text(str(child.pid))
    return _sleep(request, context)


def _hold(request: UnitRequest, context: Context) -> dict[str, Any]:
    """Keep so many bytes for the engine's life."""
    context.keep("bytes", request.payload["bytes"], lambda: bytearray(b"x" * int(request.payload["bytes"])))
    return {"pid": os.getpid()}


def _environment(request: UnitRequest, context: Context) -> dict[str, Any]:
    return {"names": sorted(os.environ)}


def _print(request: UnitRequest, context: Context) -> dict[str, Any]:
    os.write(1, b"a library prints to stdout\n")
    os.write(2, b"a library prints to stderr\n")
    return {}


def _echo(request: UnitRequest, context: Context) -> dict[str, Any]:
    return {"text": request.payload["text"], "work": str(context.work), "device": context.device}


_DEEDS: dict[str, Callable[[UnitRequest, Context], dict[str, Any]]] = {
    "nothing": _nothing,
    "sleep": _sleep,
    "wait_for": _wait_for,
    "fail_once": _fail_once,
    "kill_self": _kill_self,
    "segfault": _segfault,
    "exit": _exit,
    "kill_worker": _kill_worker,
    "hang": _hang,
    "write_and_fail": _write_and_fail,
    "write_and_wait": _write_and_wait,
    "close_pipe": _close_pipe,
    "user_error": _user_error,
    "bug": _bug,
    "disk_full": _disk_full,
    "memory": _memory,
    "cpu_allocator": _cpu_allocator,
    "not_a_number": _not_a_number,
    "not_storable": _not_storable,
    "grandchild": _grandchild,
    "hold": _hold,
    "environment": _environment,
    "print": _print,
    "echo": _echo,
}


def _resolve(request: UnitRequest) -> dict[str, Any]:
    model = InspectedModel(
        name=MEMBER,
        content="c" * 64,
        signature="s",
        tokenizer="t",
        architecture="LlamaForCausalLM",
        dtype="float32",
        parameters=1,
        hidden_size=1,
        layers=1,
        vocabulary=1,
        tied=False,
    )
    return ResolveResult(models=(model,), groups=((MEMBER,),)).as_json()


def _similarity(request: UnitRequest) -> dict[str, Any]:
    return SimilarityResult(matrices=(), families=(Family(name="one", members=(MEMBER,)),)).as_json()


def _baselines(request: UnitRequest) -> dict[str, Any]:
    return BaselinesResult(scores=(_SCORED,)).as_json()


def _search(request: UnitRequest) -> dict[str, Any]:
    return SearchResult(family=request.family, winner=_SCORED, rejected=(), trials=()).as_json()


def _merge(request: UnitRequest) -> dict[str, Any]:
    merged = MergeResult(
        family=request.family, name=request.family, expression=Member(name=MEMBER), digest="d" * 64, location="d"
    )
    return merged.as_json()


def _mixture(request: UnitRequest) -> dict[str, Any]:
    empty = MixtureResult(experts=(), left_out=(), prototypes="", digest=None, location=None, score=None)
    return empty.as_json()


def _report(request: UnitRequest) -> dict[str, Any]:
    report = ReportResult(
        digest="d" * 64,
        location="d",
        recommended=MEMBER,
        best_single=MEMBER,
        gain_over_best_single=0.0,
        gain_over_best_single_stderr=0.0,
    )
    return report.as_json()


_ADVANCES: dict[str, Callable[[UnitRequest], dict[str, Any]]] = {
    "resolve": _resolve,
    "similarity": _similarity,
    "baselines": _baselines,
    "search": _search,
    "merge": _merge,
    "mixture": _mixture,
    "report": _report,
}
