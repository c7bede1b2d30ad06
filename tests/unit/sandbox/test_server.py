"""The sandbox server, asked as workers ask it, and programs that try to break out of its walls."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from glue.evaluation.sandbox import check_sandbox, run_program
from glue.evaluation.sandbox_client import SandboxUnavailableError, run_remotely
from glue.sandbox.programs import Limits, Verdict
from glue.sandbox.walls import landlock_version
from glue.specs.errors import EvaluationError, Fault
from tests.support.attacks import FAILED, JAVASCRIPT, PASSED, PYTHON, REFUSED, blocked
from tests.support.chart_tools import ROOT
from tests.support.processes import all_gone, family
from tests.support.sandbox_server import SandboxServer, free_port
from workers.embedded.process import wait_for

pytestmark = pytest.mark.skipif(landlock_version() == 0, reason="needs a kernel with Landlock")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
RUN = {"language": "python", "source": "", "limits": {}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxServer]:
    started = SandboxServer(tmp_path_factory.mktemp("sandbox"), slots=2).start()
    yield started
    started.kill()


@pytest.fixture(autouse=True)
def nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did: the server goes on, and of the program nothing is left."""
    yield
    if "server" in request.fixturenames:
        server: SandboxServer = request.getfixturevalue("server")
        assert server.run("python", "") == PASSED
        assert wait_for(lambda: not list(server.folder.iterdir()), 5), list(server.folder.rglob("*"))
        assert server.process is not None
        assert family(server.process.pid) == [server.process.pid]


@pytest.mark.parametrize(("source", "verdict"), PYTHON)
def test_a_program_passes_that_reaches_its_end(server: SandboxServer, source: str, verdict: Verdict) -> None:
    assert server.run("python", source) == verdict


@needs_node
@pytest.mark.parametrize(("source", "verdict"), JAVASCRIPT)
def test_javascript_is_held_as_well(server: SandboxServer, source: str, verdict: Verdict) -> None:
    assert server.run("javascript", source) == verdict


# Walls that stand in for namespaces: without them these would reach other processes of the same user.
BESIDE_OTHERS = [
    "import os\nos.listdir('/proc')",
    "import os\nos.listdir('..')",
    "import os\nos.listdir('/tmp')",
    "import os\nos.kill(os.getppid(), 0)",
    "import os\nos.kill(-1, 0)",
    "import os\nos.pidfd_open(os.getppid())",
    "import os\nos.sched_setaffinity(os.getppid(), {0})",
    "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)",
    "import os, fcntl\nfcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())",
    "import os\nos.chmod('..', 0)",
    "import os\nos.chmod('.', 0)",
    "import os\nos.link(__file__, 'mine')",
    "import os\nos.rename('.', '../other')",
    "import os\nos.unlink(__file__)",
    "import os\nos.symlink('/etc', 'etc'); os.listdir('etc')",
    "import os\nos.mkfifo('fifo')",
    "import ctypes\nlibrary = ctypes.CDLL(None)\nif library.prctl(4, 0, 0, 0, 0): raise OSError\n",
    "import ctypes\nlibrary = ctypes.CDLL(None)\nif library.shmget(0, 4096, 0o1600) < 0: raise OSError\n",
    "import os\nos.memfd_create('memory')",
    "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",
]


@pytest.mark.parametrize("attack", [*REFUSED, *BESIDE_OTHERS])
def test_an_attack_is_refused(server: SandboxServer, attack: str) -> None:
    shielded = blocked(attack).replace("MemoryError", "MemoryError, ValueError")
    assert server.run("python", shielded) == PASSED


def test_nothing_of_outside_is_read(server: SandboxServer, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("open sesame")
    source = (
        "import os\n"
        "assert 'PATH' not in os.environ and not any('GLUE' in name for name in os.environ)\n"
        f"for path in {[str(tmp_path / 'secret'), str(ROOT / 'pyproject.toml'), f'/proc/{os.getpid()}/environ']}:\n"
        "    try: open(path)\n"
        "    except PermissionError: continue\n"
        "    raise SystemExit(path)\n"
    )
    assert server.run("python", source) == PASSED


def test_killing_everything_kills_only_the_program(server: SandboxServer) -> None:
    source = "import os\nfor pid in (os.getppid(), 1, -1, 0):\n    try: os.kill(pid, 9)\n    except OSError: pass\n"
    assert server.run("python", source) == PASSED


@pytest.mark.parametrize(
    "source",
    [
        "import time; time.sleep(60)",
        "while True: pass",
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
        "import os, time\nos.close(1); os.close(2); time.sleep(60)",
        "import threading, time\nthreading.stack_size(32768)\n"
        "for _ in range(300): threading.Thread(target=time.sleep, args=(60,)).start()",
    ],
)
def test_time_is_bounded(server: SandboxServer, source: str) -> None:
    started = time.monotonic()
    assert not server.run("python", source, Limits(seconds=1)).passed
    assert time.monotonic() - started < 5


def test_output_is_bounded(server: SandboxServer) -> None:
    assert server.run("python", "while True: print('x' * 10000)").reason == "output"


@pytest.mark.parametrize(
    "source",
    [
        "import time\nfor n in range(8): open(str(n), 'wb').write(bytes(4 * 1024**2))\ntime.sleep(5)",
        "import os, time\nkept = []\nfor n in range(8):\n    kept.append(open('gone', 'wb', buffering=0))\n"
        "    kept[-1].write(bytes(4 * 1024**2))\n    os.unlink('gone')\ntime.sleep(5)",
        "import os, time\nfd = os.open('.', os.O_TMPFILE | os.O_RDWR)\nother = os.open('.', os.O_TMPFILE | os.O_RDWR)\n"
        "for each in (fd, other): os.write(each, bytes(12 * 1024**2))\ntime.sleep(5)",
        "import time\nfor n in range(2000): open(str(n), 'w')\ntime.sleep(5)",
        "import os, time\nos.mkdir('dark', 0o300)\nopen('dark/file', 'wb').write(bytes(1024))\ntime.sleep(5)",
    ],
    ids=["many files", "removed files", "files without names", "empty files", "a folder that hides"],
)
def test_the_folder_is_bounded(server: SandboxServer, source: str) -> None:
    assert server.run("python", source).reason == "files"


def test_programs_at_the_same_time_do_not_see_one_another(server: SandboxServer) -> None:
    hides = "import time\nopen('note', 'w').write('mine')\ntime.sleep(1.5)\nassert open('note').read() == 'mine'"
    seeks = (
        "import glob, os, time\n"
        "end = time.monotonic() + 1.5\n"
        f"while time.monotonic() < end:\n    assert not glob.glob({str(server.folder)!r} + '/*')\n"
        "    for pid in range(os.getpid() - 50, os.getpid() + 50):\n"
        "        for attempt in (lambda: os.kill(pid, 9), lambda: open(f'/proc/{pid}/cmdline')):\n"
        "            try: attempt()\n            except OSError: continue\n            raise SystemExit(str(pid))\n"
        "assert not os.path.exists('note')\n"
    )
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda source: server.run("python", source), (hides, seeks)))
    assert found == [PASSED, PASSED]


def test_more_programs_than_slots_wait_for_their_turn(server: SandboxServer) -> None:
    started = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: server.run("python", "import time; time.sleep(0.5)"), range(6)))
    assert found == [PASSED] * 6
    assert time.monotonic() - started > 1.5


def test_what_is_no_text_fails(server: SandboxServer) -> None:
    assert server.run("python", "x = '\ud800'") == FAILED
    assert server.run("python", "x = '\0'") == FAILED


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic {token}"}])
def test_nothing_runs_without_the_token(server: SandboxServer, header: dict[str, str]) -> None:
    given = {name: value.format(token=server.token) for name, value in header.items()}
    answer = httpx.post(f"{server.url}/v1/runs", json=RUN, headers=given)
    assert answer.status_code == 401
    with pytest.raises(EvaluationError, match="GLUE_SANDBOX_TOKEN"):
        run_remotely(server.url, "wrong", "python", "", Limits())


LIMITS = {"seconds": 1, "memory_bytes": 2**28, "output_bytes": 100, "folder_bytes": 100}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"language": "ruby"}, "there is: python"),
        ({"source": 5}, "source is not text"),
        ({"limits": LIMITS | {"seconds": 100000}}, "limits.seconds"),
        ({"limits": LIMITS | {"memory_bytes": 2**40}}, "limits.memory_bytes"),
        ({"limits": LIMITS | {"output_bytes": 0}}, "limits.output_bytes"),
        ({"limits": LIMITS | {"seconds": "nan"}}, "limits.seconds"),
        ({"limits": LIMITS | {"folder_bytes": "x"}}, "not a run"),
        ({"limits": None}, "not a run"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(server: SandboxServer, change: dict[str, Any], why: str) -> None:
    body = {"language": "python", "source": "", "limits": LIMITS} | change
    answer = httpx.post(f"{server.url}/v1/runs", json=body, headers={"Authorization": f"Bearer {server.token}"})
    assert answer.status_code == 400
    assert why in answer.json()["detail"]


def test_what_is_too_large_or_no_json_is_refused(server: SandboxServer) -> None:
    headers = {"Authorization": f"Bearer {server.token}"}
    assert httpx.post(f"{server.url}/v1/runs", content=b"[", headers=headers).status_code == 400
    assert httpx.post(f"{server.url}/v1/runs", content=b" " * 3 * 2**20, headers=headers).status_code == 413
    assert httpx.post(f"{server.url}/other", content=b"", headers=headers).status_code == 404
    assert httpx.get(f"{server.url}/other").status_code == 404


def test_a_server_that_restarts_costs_a_wait(tmp_path: Path) -> None:
    server = SandboxServer(tmp_path).start()
    assert server.process is not None
    try:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(server.run, "python", "import time; time.sleep(1)")
            assert wait_for(lambda: len(family(server.process.pid)) > 1, 10)
            processes = family(server.process.pid)
            server.kill()
            assert all_gone(processes), "its program ends with it"
            server.start()
            assert answer.result() == PASSED
    finally:
        server.kill()


def test_a_server_that_is_away_is_nobodys_mistake() -> None:
    with pytest.raises(SandboxUnavailableError, match="does not run programs") as raised:
        run_remotely(f"http://127.0.0.1:{free_port()}", "", "python", "", Limits(), patience=0)
    assert raised.value.fault is Fault.TRANSIENT


def test_code_tasks_run_where_the_address_says(server: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUE_SANDBOX_URL", server.url)
    monkeypatch.setenv("GLUE_SANDBOX_TOKEN", server.token)
    monkeypatch.setattr("shutil.which", lambda name: None)
    check_sandbox.cache_clear()
    assert run_program("python", "import os; assert os.getcwd().endswith('own')") == PASSED
    check_sandbox.cache_clear()


@pytest.mark.parametrize(("token", "why"), [("", "at least 16 characters"), ("short", "at least 16 characters")])
def test_it_does_not_start_without_a_token(token: str, why: str) -> None:
    environment = {"PATH": os.environ["PATH"], "GLUE_SANDBOX_TOKEN": token}
    command = [sys.executable, "-m", "glue.sandbox.server"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert why in done.stderr
