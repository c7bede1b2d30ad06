"""Programs that try to break out of bubblewrap."""

import os
import shutil
import time
from pathlib import Path

import pytest

from glue.evaluation.sandbox import check_sandbox, run_program
from glue.sandbox.programs import Limits, Verdict
from glue.specs.errors import EvaluationError
from tests.support.attacks import JAVASCRIPT, PASSED, PYTHON, REFUSED, blocked

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")


@needs_bubblewrap
@pytest.mark.parametrize(("source", "verdict"), PYTHON)
def test_a_program_passes_that_reaches_its_end(source: str, verdict: Verdict) -> None:
    assert run_program("python", source) == verdict


@needs_bubblewrap
@needs_node
@pytest.mark.parametrize(("source", "verdict"), JAVASCRIPT)
def test_javascript_is_held_as_well(source: str, verdict: Verdict) -> None:
    assert run_program("javascript", source) == verdict


@needs_bubblewrap
@pytest.mark.parametrize("attack", REFUSED)
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
