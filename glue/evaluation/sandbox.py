"""Runs a program that a model wrote where it can do no harm; knows nothing of tasks and scores.

The program sees the interpreter's files and an empty folder in memory: no network, no environment, no other
process, nothing that can be written outside. It starts no process. Time, memory and output are bounded.
"""

import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from glue.evaluation.system_calls import filter_program
from glue.specs.errors import EvaluationError

Language = Literal["python", "javascript"]

TAIL = {"python": '\nprint("\\n{mark}", flush=True)\n', "javascript": '\n;console.log("\\n{mark}");\n'}
RUNTIME = "/runtime"
MEBIBYTE = 1024**2


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
    reason: Literal["passed", "failed", "time", "output"]


def run_program(language: Language, source: str, limits: Limits | None = None) -> Verdict:
    """Run the program; it passes when its last line is reached, whatever it exits with before or prints.

    The last line prints a mark that is new for each run, so that leaving early with status 0 passes nothing.

    Raises:
        EvaluationError: this machine has no sandbox, or no interpreter of that language.
    """
    check_sandbox(language)
    return _run(language, source, limits or Limits())


@cache
def check_sandbox(language: Language) -> None:
    """Show that a program of that language runs in the sandbox here.

    Raises:
        EvaluationError: it does not, with what to install.
    """
    interpreter(language)
    if shutil.which("bwrap") is None:
        raise EvaluationError(
            "code tasks run model-written programs, and this machine has no sandbox for them; install bubblewrap "
            "(Debian: the package bubblewrap), or take the code tasks out of the suite"
        )
    if not _run(language, "", Limits()).passed:
        raise EvaluationError(
            f"bubblewrap is there but a {language} program does not run in it; it needs user namespaces "
            "(sysctl user.max_user_namespaces, in a container a seccomp profile that allows them)"
        )


def interpreter(language: Language) -> Path:
    """The file that runs programs of that language.

    Raises:
        EvaluationError: there is none.
    """
    if language == "python":
        return Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}").resolve()
    found = shutil.which("node")
    if found is None:
        raise EvaluationError("JavaScript tasks need Node.js: the program node is not on PATH")
    return Path(found).resolve()


def _run(language: Language, source: str, limits: Limits) -> Verdict:
    mark = secrets.token_hex(16)
    with TemporaryDirectory() as folder, filter_program() as filter_file:
        program = Path(folder, "program")
        program.write_text(source + TAIL[language].format(mark=mark), encoding="utf-8")
        command = [*_sandbox(language, program, filter_file, limits), *_command(language, limits)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            pass_fds=[filter_file],
            start_new_session=True,
        )
        try:
            return _watch(process, mark, limits)
        finally:
            # The sandbox's first process dies with bubblewrap, and all others with it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _sandbox(language: Language, program: Path, filter_file: int, limits: Limits) -> list[str]:
    root = interpreter(language).parent.parent
    runtime = [] if root == Path("/usr") else ["--ro-bind", str(root), RUNTIME]
    return [
        str(shutil.which("bwrap")),
        *("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"),
        *("--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--seccomp", str(filter_file)),
        *("--ro-bind", "/usr", "/usr"),
        *(part for name in ("lib", "lib64", "bin") for part in ("--symlink", f"usr/{name}", f"/{name}")),
        *runtime,
        # No /proc: a worker that runs as root would own the kernel's settings in it.
        *("--dev", "/dev", "--size", str(limits.folder_bytes), "--tmpfs", "/tmp"),  # noqa: S108
        *("--ro-bind", str(program), "/program", "--remount-ro", "/dev", "--remount-ro", "/"),
        *("--chdir", "/tmp", "--"),  # noqa: S108  (the sandbox's own)
    ]


def _command(language: Language, limits: Limits) -> list[str]:
    # V8 reserves far more addresses than it uses, so that its data are limited instead.
    memory = "--as" if language == "python" else "--data"
    bounds = [f"{memory}={limits.memory_bytes}", f"--cpu={int(limits.seconds) + 1}", "--core=0", "--nofile=64"]
    found = interpreter(language)
    inside = str(found) if found.parent.parent == Path("/usr") else f"{RUNTIME}/bin/{found.name}"
    heap = f"--max-old-space-size={limits.memory_bytes // MEBIBYTE // 2}"
    options = {"python": ["-I", "-S"], "javascript": [heap]}[language]
    return ["/usr/bin/prlimit", *bounds, inside, *options, "/program"]


def _watch(process: subprocess.Popen[bytes], mark: str, limits: Limits) -> Verdict:
    assert process.stdout is not None
    end, output = time.monotonic() + limits.seconds, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := end - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            part = os.read(process.stdout.fileno(), 65536)
            output += part
            if len(output) > limits.output_bytes:
                return Verdict(False, "output")
            if not part:
                passed = output.rstrip().endswith(mark.encode())
                return Verdict(True, "passed") if passed else Verdict(False, "failed")
    return Verdict(False, "time")
