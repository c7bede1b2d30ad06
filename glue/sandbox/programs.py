"""A program's limits, its run and its verdict; knows nothing of what confines it."""

import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

Language = Literal["python", "javascript"]
Reason = Literal["passed", "failed", "time", "output", "files"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

TAIL = {"python": '\nprint("\\n{mark}", flush=True)\n', "javascript": '\n;console.log("\\n{mark}");\n'}
MEBIBYTE = 1024**2
# How often a folder is looked at that has no size of its own.
GLANCE_SECONDS = 0.02
BLOCK = 512
MOST_FILES = 1000


class NoInterpreterError(Exception):
    """This machine has no interpreter of a language."""


@dataclass(frozen=True)
class Limits:
    """What one program may use: wall and processor seconds, bytes of memory, of output and of its folder."""

    seconds: float = 10.0
    memory_bytes: int = 512 * MEBIBYTE
    output_bytes: int = 64 * 1024
    folder_bytes: int = 16 * MEBIBYTE


@dataclass(frozen=True)
class Verdict:
    """Whether the program ran to its last line; `reason` says why it did not."""

    passed: bool
    reason: Reason


@dataclass(frozen=True)
class Confined:
    """A command that runs a program inside walls, what it inherits, and the folder that nothing else bounds."""

    command: Sequence[str]
    descriptors: Sequence[int] = ()
    environment: dict[str, str] = field(default_factory=dict)
    watched: Path | None = None


def interpreter(language: Language) -> Path:
    """The file that runs programs of that language.

    Raises:
        NoInterpreterError: there is none.
    """
    if language == "python":
        return Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}").resolve()
    found = shutil.which("node")
    if found is None:
        raise NoInterpreterError("JavaScript tasks need Node.js: the program node is not on PATH")
    return Path(found).resolve()


def interpreter_options(language: Language, limits: Limits) -> list[str]:
    """Options that keep an interpreter to itself and to its memory."""
    heap = f"--max-old-space-size={limits.memory_bytes // MEBIBYTE // 2}"
    # Debian's Node.js wants the machine's OpenSSL settings, which no sandbox shows.
    return {"python": ["-I", "-S"], "javascript": [heap, "--openssl-config=/dev/null"]}[language]


def run_confined(
    language: Language, source: str, limits: Limits, program: Path, confine: Callable[[Path], Confined]
) -> Verdict:
    """Write the program to the file `program`, run it as `confine` says and watch it.

    Its last line prints a mark that is new for each run, so that leaving early with status 0 passes nothing.
    """
    mark = secrets.token_hex(16)
    # What is no text is left to the interpreter to refuse.
    program.write_bytes((source + TAIL[language].format(mark=mark)).encode("utf-8", "surrogatepass"))
    confined = confine(program)
    process = subprocess.Popen(
        confined.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=confined.environment,
        pass_fds=confined.descriptors,
        start_new_session=True,
    )
    try:
        return _watch(process, mark, limits, confined.watched)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _watch(process: subprocess.Popen[bytes], mark: str, limits: Limits, folder: Path | None) -> Verdict:
    assert process.stdout is not None
    end, output = time.monotonic() + limits.seconds, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := end - time.monotonic()) > 0:
            ready = selector.select(min(left, GLANCE_SECONDS) if folder else left)
            if folder and _is_overfull(folder, process.pid, limits):
                return Verdict(False, "files")
            if not ready:
                continue
            part = os.read(process.stdout.fileno(), 65536)
            output += part
            if len(output) > limits.output_bytes:
                return Verdict(False, "output")
            if not part:
                passed = output.rstrip().endswith(mark.encode())
                return Verdict(True, "passed") if passed else Verdict(False, "failed")
    return Verdict(False, "time")


def _is_overfull(folder: Path, process: int, limits: Limits) -> bool:
    """Whether the program's files take more than they may, those included that it removed and keeps open."""
    taken = count = 0
    try:
        for found in chain(_inside(folder), _removed(process)):
            taken, count = taken + found.st_blocks * BLOCK, count + 1
            if taken > limits.folder_bytes or count > MOST_FILES:
                return True
    except PermissionError:
        # A folder into which nobody can look is one too many.
        return True
    return False


def _inside(folder: Path) -> Iterator[os.stat_result]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                yield entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                yield from _inside(Path(entry.path))


def _removed(process: int) -> Iterator[os.stat_result]:
    # Before the program starts its files are nobody's to see.
    with suppress(FileNotFoundError, PermissionError):
        for entry in Path(f"/proc/{process}/fd").iterdir():
            with suppress(FileNotFoundError):
                found = entry.stat()
                if found.st_nlink == 0:
                    yield found
