"""Runs a program that a model wrote where it can do no harm; knows nothing of tasks and scores.

The program sees the interpreter's files and an empty folder in memory: no network, no environment, no other
process, nothing that can be written outside. It starts no process. Time, memory and output are bounded. It runs in
bubblewrap on this machine, or on the sandbox server that GLUE_SANDBOX_URL names.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from glue.evaluation.sandbox_client import run_remotely
from glue.sandbox.programs import (
    Confined,
    Language,
    Limits,
    NoInterpreterError,
    Verdict,
    interpreter,
    interpreter_options,
    run_confined,
)
from glue.sandbox.system_calls import UnknownProcessorError, filter_program
from glue.specs.errors import EvaluationError

RUNTIME = "/runtime"
URL, TOKEN = "GLUE_SANDBOX_URL", "GLUE_SANDBOX_TOKEN"
_ran: ContextVar[Callable[[], None]] = ContextVar("ran", default=lambda: None)


def run_program(language: Language, source: str, limits: Limits | None = None) -> Verdict:
    """Run the program; it passes when its last line is reached, whatever it exits with before or prints.

    The last line prints a mark that is new for each run, so that leaving early with status 0 passes nothing.

    Raises:
        EvaluationError: there is no sandbox, or no interpreter of that language in it.
        SandboxUnavailableError: the sandbox server does not answer.
    """
    check_sandbox(language)
    verdict = _run(language, source, limits or Limits())
    _ran.get()()
    return verdict


@contextmanager
def programs_told(tell: Callable[[], None]) -> Iterator[None]:
    """Have `tell` called behind every program that runs in the block."""
    before = _ran.set(tell)
    try:
        yield
    finally:
        _ran.reset(before)


@cache
def check_sandbox(language: Language) -> None:
    """Show that a program of that language runs in the sandbox here.

    Raises:
        EvaluationError: it does not, with what to install.
    """
    if os.environ.get(URL):
        if not _run(language, "", Limits()).passed:
            raise EvaluationError(f"a {language} program does not run on the sandbox server; see its log")
        return
    _interpreter(language)
    if shutil.which("bwrap") is None:
        raise EvaluationError(
            "code tasks run model-written programs, and this machine has no sandbox for them; install bubblewrap "
            f"(Debian: the package bubblewrap), set {URL}, or take the code tasks out of the suite"
        )
    if not _run(language, "", Limits()).passed:
        raise EvaluationError(
            f"bubblewrap is there but a {language} program does not run in it; it needs user namespaces "
            "(sysctl user.max_user_namespaces, in a container a seccomp profile that allows them)"
        )


def _interpreter(language: Language) -> Path:
    try:
        return interpreter(language)
    except NoInterpreterError as error:
        raise EvaluationError(str(error)) from None


def _run(language: Language, source: str, limits: Limits) -> Verdict:
    if url := os.environ.get(URL):
        return run_remotely(url, os.environ.get(TOKEN, ""), language, source, limits)
    try:
        # The sandbox's first process dies with bubblewrap, and all others with it.
        with TemporaryDirectory() as folder, filter_program() as filter_file:
            command = _command(language, limits)
            return run_confined(
                language,
                source,
                limits,
                Path(folder, "program"),
                lambda program: Confined([*_sandbox(language, program, filter_file, limits), *command], [filter_file]),
            )
    except UnknownProcessorError as error:
        raise EvaluationError(str(error)) from None


def _sandbox(language: Language, program: Path, filter_file: int, limits: Limits) -> list[str]:
    root = _interpreter(language).parent.parent
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
    found = _interpreter(language)
    inside = str(found) if found.parent.parent == Path("/usr") else f"{RUNTIME}/bin/{found.name}"
    options = interpreter_options(language, limits)
    return ["/usr/bin/prlimit", *bounds, inside, *options, "/program"]
