"""Programs that try to break out. Each attack is bounded, should a wall be missing."""

import os
import shutil
import time
from pathlib import Path

import pytest

from glue.evaluation.sandbox import Limits, Verdict, check_sandbox, run_program
from glue.specs.errors import EvaluationError

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
PASSED, FAILED = Verdict(True, "passed"), Verdict(False, "failed")


@needs_bubblewrap
@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        ("assert sum([1, 2]) == 3", PASSED),
        ("import math, re, json, collections, threading\nassert math.isqrt(9) == 3", PASSED),
        ("import threading\nt = threading.Thread(target=print)\nt.start(); t.join()", PASSED),
        ("open('note', 'w').write('x')\nassert open('note').read() == 'x'", PASSED),
        ("assert 1 == 2", FAILED),
        ("def f(:", FAILED),
        ("import sys; sys.exit(0)", FAILED),
        ("import os; os._exit(0)", FAILED),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", FAILED),
    ],
)
def test_a_program_passes_that_reaches_its_end(source: str, verdict: Verdict) -> None:
    assert run_program("python", source) == verdict


@needs_bubblewrap
@needs_node
@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        ("const assert = require('assert'); assert.strictEqual([1, 2].length, 2)", PASSED),
        ("throw new Error('no')", FAILED),
        ("process.exit(0)", FAILED),
        ("require('child_process').execSync('true')", FAILED),
        ("require('fs').writeFileSync('/usr/trace', 'x')", FAILED),
        ("const kept = []; for (let n = 0; n < 40; n++) kept.push(Buffer.alloc(50e6, 1))", FAILED),
        ("if (Object.keys(process.env).some(key => key !== 'PWD')) throw new Error('environment')", PASSED),
    ],
)
def test_javascript_is_held_as_well(source: str, verdict: Verdict) -> None:
    assert run_program("javascript", source) == verdict


def blocked(attack: str) -> str:
    """A program that reaches its end only where the attack raises."""
    body = "\n".join(f"    {line}" for line in attack.splitlines())
    return f"try:\n{body}\nexcept (OSError, MemoryError):\n    pass\nelse:\n    raise SystemExit('it worked')"


@needs_bubblewrap
@pytest.mark.parametrize(
    "attack",
    [
        "import os\nfor _ in range(20): os.fork()",
        "import subprocess\nsubprocess.run(['/usr/bin/true'])",
        "import multiprocessing as m\np = m.get_context('fork').Process(target=print)\np.start()",
        "import socket\nsocket.socket()",
        "import socket\nsocket.create_connection(('127.0.0.1', 80), timeout=1)",
        "import socket\nsocket.socketpair()",
        "open('/usr/trace', 'w')",
        "open('/trace', 'w')",
        "open('/dev/shm/trace', 'w')",
        "open('/program', 'a')",
        "open('/etc/passwd')",
        "open('/proc/1/environ')",
        "open('/proc/sys/kernel/hostname', 'w')",
        "kept = [bytearray(50 * 1024**2) for _ in range(40)]",
        "open('fill', 'wb').write(bytes(40 * 1024**2))",
        "import os\nos.kill(2**22 - 1, 9)",
        "import os, ctypes\nlibrary = ctypes.CDLL(None, use_errno=True)\n"
        "if library.unshare(0x10000000): raise OSError(ctypes.get_errno())",
    ],
)
def test_an_attack_is_refused(attack: str) -> None:
    assert run_program("python", blocked(attack)) == PASSED


@needs_bubblewrap
def test_nothing_of_outside_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET", "open sesame")
    (tmp_path / "secret").write_text("open sesame")
    source = (
        "import os\n"
        "assert 'SECRET' not in os.environ\n"
        f"assert not os.path.exists({str(tmp_path)!r}) and not os.path.exists({str(Path.cwd())!r})\n"
        "assert not os.path.exists('/proc')\n"
    )
    assert run_program("python", source) == PASSED


@needs_bubblewrap
def test_killing_everything_kills_only_the_program() -> None:
    run_program("python", "import os\nos.kill(-1, 9)\nos.kill(os.getppid(), 9)\nos.kill(1, 9)")
    assert run_program("python", "") == PASSED


@needs_bubblewrap
@pytest.mark.parametrize(
    "source", ["import time; time.sleep(60)", "while True: pass", "import sys; sys.stdin.read(); 1/0"]
)
def test_time_is_bounded(source: str) -> None:
    started = time.monotonic()
    assert not run_program("python", source, Limits(seconds=1.5)).passed
    assert time.monotonic() - started < 6


@needs_bubblewrap
def test_output_is_bounded() -> None:
    source = "while True: print('x' * 10000)"
    assert run_program("python", source).reason == "output"


@needs_bubblewrap
def test_a_program_that_closes_its_output_is_waited_for_no_longer_than_allowed() -> None:
    source = "import os, time\nos.close(1); os.close(2); time.sleep(60)"
    assert not run_program("python", source, Limits(seconds=2)).passed


def test_without_a_sandbox_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    check_sandbox.cache_clear()
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(EvaluationError, match="install bubblewrap"):
        run_program("python", f"open({os.devnull!r}, 'w')")
    with pytest.raises(EvaluationError, match=r"Node\.js"):
        run_program("javascript", "1")
