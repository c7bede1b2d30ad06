"""The worker's side of the engine: starts it, hands it a unit, kills it with all its children. Opens no database."""

import logging
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from glue.references.hub_access import HubAccess
from glue.specs.plan import UnitOutcome, UnitRequest
from workers.engine.protocol import Answer, Done, Failed, Progress, Run, decode_answer, encode_run
from workers.settings import Settings

logger = logging.getLogger(__name__)

# How soon an interruption or a silent death is noticed; answers are noticed at once.
_TICK_SECONDS = 0.1
_CHUNK_BYTES = 1 << 16
# A process closes its pipes a moment before it can be waited for.
_LAST_BREATH_SECONDS = 1.0

# Only these reach the engine: no address, password, key or token does, but the sandbox's.
_NAMES = {"GLUE_LOG_FORMAT", "PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "XDG_CACHE_HOME"}
_PREFIXES = (
    "LC_", "PYTHON", "LD_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "ATEN_", "TORCH", "PYTORCH_", "CUDA_", "CUBLAS_",
    "NCCL_", "NVIDIA_", "HF_", "TRANSFORMERS_",
)  # fmt: skip
# The order of sets must not differ from engine to engine, and a fork must not find tokenizers' threads.
_FIXED = {"PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "KEY", "URL", "ENDPOINT")
# The one door that it may open: behind it programs run that models wrote, and nothing else is reached.
_SANDBOX = ("GLUE_SANDBOX_URL", "GLUE_SANDBOX_TOKEN")


class Interruption(StrEnum):
    """Why a running unit must stop."""

    LOST = "lost"
    CANCELLED = "cancelled"
    DRAINED = "drained"


class EngineDiedError(Exception):
    """The engine ended without an answer, and nobody of ours killed it."""


class EngineStalledError(EngineDiedError):
    """The engine said nothing for too long and was killed, with its children."""


class UnitFailedError(Exception):
    """The unit ended with `error`, in its stored form."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["detail"])
        self.error = error


class UnitInterruptedError(Exception):
    """The unit was stopped, with its engine."""

    def __init__(self, reason: Interruption) -> None:
        super().__init__(reason.value)
        self.reason = reason


class WarmEngine:
    """One engine, kept between units of the same job. To be used by one thread, which must live as long as it should.

    The kernel kills the engine when the thread that started it ends.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: _Process | None = None
        self._job_id = ""

    @property
    def pid(self) -> int | None:
        """The engine's process, if there is one."""
        return self._process.pid if self._process else None

    def run(
        self,
        request: UnitRequest,
        progress: Callable[[dict[str, Any]], None],
        interruption: Callable[[], Interruption | None],
        hub: HubAccess | None = None,
    ) -> UnitOutcome:
        """Run one unit; `interruption` is asked several times a second. `hub` is for units that speak to it.

        Raises:
            UnitFailedError: the unit failed.
            UnitInterruptedError: `interruption` gave a reason; the engine and its children are dead.
            EngineDiedError: the engine crashed.
            EngineStalledError: it made no progress for `Settings.stall` and is dead with its children.
        """
        process = self._for_job(request.job_id)
        try:
            outcome = _converse(process, self._line(request, hub), progress, interruption, self._settings.stall)
        except BaseException:
            # Whatever went wrong may have left half a model behind: the next unit gets a fresh engine.
            self.stop()
            raise
        if hub is not None:
            # Nothing that runs later may find the token in its memory.
            self.stop()
        elif 0 < self._settings.engine_memory < process.resident_bytes():
            logger.info("engine %d is replaced: it holds %d bytes", process.pid, process.resident_bytes())
            self.stop()
        return outcome

    def stop(self) -> None:
        """Kill the engine and its children, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _for_job(self, job_id: str) -> "_Process":
        if self._job_id != job_id or (self._process and self._process.has_ended()):
            self.stop()
        if self._process is None:
            self._process = _Process(self._settings.engine_runner)
            self._job_id = job_id
        return self._process

    def _line(self, request: UnitRequest, hub: HubAccess | None) -> bytes:
        work = self._settings.work / request.unit_id / request.digest
        return encode_run(Run(request, str(self._settings.artifacts), str(work), self._settings.device, hub))


def _converse(
    process: "_Process",
    line: bytes,
    progress: Callable[[dict[str, Any]], None],
    interruption: Callable[[], Interruption | None],
    stall: float,
) -> UnitOutcome:
    heard_at, last = monotonic(), "it began"
    for answer in process.exchange(line):
        match answer:
            case Done(outcome):
                return outcome
            case Failed(error):
                raise UnitFailedError(error)
            case Progress(fraction, message):
                heard_at, last = monotonic(), message
                progress({"fraction": fraction, "message": message})
        reason = interruption()
        if reason is not None:
            raise UnitInterruptedError(reason)
        if 0 < stall < monotonic() - heard_at:
            raise EngineStalledError(f"the engine made no progress for {stall:g} s and was killed; its last: {last}")
    raise EngineDiedError(process.how_it_ended())


class _Process:
    """One engine process, leading a session and process group of its own."""

    def __init__(self, runner: str) -> None:
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        arguments = ["--parent", os.getpid(), "--requests", requests, "--answers", answers, "--runner", runner]
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "workers.engine.main", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            # What libraries print goes to the worker's log.
            stdout=sys.__stderr__,
            stderr=sys.__stderr__,
            env=engine_environment(os.environ),
            pass_fds=(requests, answers),
            start_new_session=True,
        )
        os.close(requests)
        os.close(answers)
        os.set_blocking(self._requests, False)
        self._buffer = bytearray()
        logger.info("engine %d started", self.pid)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def exchange(self, line: bytes) -> Iterator[Answer | None]:
        """Send the line; then every answer as it comes, None at each tick without one. Ends when the engine does."""
        unsent = memoryview(line)
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            selector.register(self._requests, selectors.EVENT_WRITE)
            while True:
                # Asked before the pipe is, so that the last words of a dead engine are still heard.
                ended = self.has_ended()
                ready = {key.fd for key, _ in selector.select(_TICK_SECONDS)}
                if self._requests in ready:
                    unsent = self._send(unsent)
                    if not unsent:
                        selector.unregister(self._requests)
                if self._answers in ready:
                    data = os.read(self._answers, _CHUNK_BYTES)
                    if not data:
                        return
                    yield from self._lines(data)
                elif ended:
                    return
                yield None

    def kill(self) -> None:
        """SIGKILL for the whole group, before its leader is reaped and its number given away."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        os.close(self._requests)
        os.close(self._answers)

    def has_ended(self) -> bool:
        """Whether the process is over; it stays unreaped, so its number stays ours to kill."""
        return self._end() is not None

    def how_it_ended(self) -> str:
        """For people: the signal or exit code of an engine that ended by itself."""
        deadline = monotonic() + _LAST_BREATH_SECONDS
        while (end := self._end()) is None and monotonic() < deadline:
            sleep(_TICK_SECONDS / 5)
        if end is None:
            return "the engine process closed its pipe without an answer"
        if end.si_code == os.CLD_EXITED:
            return f"the engine process ended with exit code {end.si_status} without an answer"
        hint = "; perhaps memory ran out" if end.si_status == signal.SIGKILL else ""
        return f"the engine process was killed by signal {end.si_status} ({signal.strsignal(end.si_status)}){hint}"

    def resident_bytes(self) -> int:
        """What the engine holds in memory now; 0 once it has ended."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _end(self) -> os.waitid_result | None:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    def _send(self, unsent: memoryview) -> memoryview:
        try:
            return unsent[os.write(self._requests, unsent[:_CHUNK_BYTES]) :]
        except BlockingIOError:
            return unsent
        except BrokenPipeError:
            # It died before it had read everything; the reading side says so.
            return unsent[len(unsent) :]

    def _lines(self, data: bytes) -> Iterator[Answer]:
        self._buffer += data
        if b"\n" in data:
            *lines, self._buffer = self._buffer.split(b"\n")
            for line in lines:
                yield decode_answer(bytes(line))


def engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of the worker's environment the engine may see: what libraries need, nothing that opens a door."""
    return _FIXED | {name: value for name, value in environment.items() if _may_pass(name)}


def _may_pass(name: str) -> bool:
    if name in _SANDBOX:
        return True
    known = name in _NAMES or name.startswith(_PREFIXES)
    return known and name not in _FIXED and not any(word in name for word in _SECRET_WORDS)
