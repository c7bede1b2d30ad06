"""`glue …` as a person types it, in a terminal of 80 columns, against a running service."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.main_job import QUICK_RECOVERY
from tests.support.processes import kill
from tests.support.services import Service, service
from tests.support.tiny_zoo import build_tiny_zoo, job_request
from workers.embedded.process import wait_for

GLUE = Path(sys.executable).parent / "glue"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny zoo with its two files, whose paths are meant from their own folder."""
    root = build_tiny_zoo(tmp_path_factory.mktemp("zoo"))
    members = [{"name": name, "source": f"./models/{name}"} for name in ("ant", "bee", "cat", "dog")]
    (root / "zoo.yml").write_text(
        yaml.safe_dump({"name": "tiny", "base": {"source": "models/base"}, "members": members})
    )
    job = job_request(root)
    for suite in ("proxy", "report"):
        job[suite]["include_path"] = "./tasks"
    (root / "job.yml").write_text(yaml.safe_dump(job))
    return root


@pytest.fixture(scope="module")
def running(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("service") / "home"
    with service(home, "--workers", "1", "--root", str(zoo), environment=QUICK_RECOVERY) as started:
        yield started


def glue(running: Service | None, *arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GLUE_")}
    where = {"GLUE_HOME": str(running.home if running else home), "COLUMNS": "80", "NO_COLOR": "1"}
    return subprocess.run(
        [GLUE, *arguments], env=clean | where, cwd="/", capture_output=True, text=True, check=False, timeout=280
    )


@contextmanager
def started(running: Service, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command as it runs, and gone when the block ends."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GLUE_")}
    where = {"GLUE_HOME": str(running.home), "COLUMNS": "80", "NO_COLOR": "1"}
    streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([GLUE, *arguments], env=clean | where, cwd="/", **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def words(text: str) -> str:
    """The text without the line breaks of the terminal."""
    return " ".join(text.split())


def test_from_a_zoo_file_to_a_pulled_model(running: Service, zoo: Path, tmp_path: Path) -> None:
    added = glue(running, "zoo", "add", str(zoo / "zoo.yml"))
    assert added.returncode == 0, added.stderr
    assert re.match(r"zoo tiny \(zoo_\w+\): 4 members\n", added.stdout)
    submitted = glue(running, "submit", str(zoo / "job.yml"), "--follow")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    job_id = re.findall(r"job_\w+", submitted.stdout)[0]
    for stage in ("resolve", "similarity", "baselines", "search", "merge", "mixture", "report"):
        assert re.search(rf"^{stage}\s+━+", submitted.stdout, re.MULTILINE), submitted.stdout
    assert "points" in submitted.stdout
    assert max(len(line) for line in submitted.stdout.splitlines()) <= 80

    listed = glue(running, "jobs")
    assert re.search(rf"{job_id}\s+succeeded\s+100 %", listed.stdout), listed.stdout
    assert json.loads(glue(running, "status", "last", "--json").stdout)["id"] == job_id
    report = json.loads(glue(running, "report", job_id, "--json").stdout)
    assert report["artifact"] == "mixture"
    shown = glue(running, "report", "last").stdout
    assert "merge of ant + bee" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80

    pulled = glue(running, "pull", job_id, str(tmp_path / "model"))
    assert pulled.returncode == 0, pulled.stderr
    assert json.loads((tmp_path / "model" / "report.json").read_text()) == report
    again = glue(running, "pull", job_id, str(tmp_path / "model"))
    assert again.returncode == 1
    assert "is not empty" in words(again.stderr)


def test_who_leaves_and_comes_back_misses_nothing(running: Service, zoo: Path) -> None:
    """Ctrl-C leaves the job alone; an API that dies meanwhile costs a pause, of the bars and of the events."""
    assert glue(running, "zoo", "add", str(zoo / "zoo.yml")).returncode == 0
    with started(running, "submit", str(zoo / "job.yml"), "--follow") as submitting:
        assert submitting.stdout is not None
        job_id = re.findall(r"job_\w+", submitting.stdout.readline())[0]
        # Its bars are up once it asks for the job.
        time.sleep(1)
        submitting.send_signal(signal.SIGINT)
        left = words(submitting.communicate(timeout=30)[0])
    assert submitting.returncode == 130
    assert f"The job goes on. `glue follow {job_id}` shows it again, `glue cancel {job_id}` ends it." in left
    seen: list[int] = []
    reading = threading.Thread(target=read_events, args=(running, job_id, seen))
    with started(running, "follow", job_id) as following:
        reading.start()
        assert wait_for(lambda: len(seen) > 3, 60)
        for _ in range(2):
            kill(running.pids["api"])
            assert wait_for(running.is_ready, 30)
        followed = following.communicate(timeout=200)[0]
        reading.join(60)
    assert following.returncode == 0, followed
    assert "points" in followed, "the report"
    with running.client as client:
        assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "succeeded"
        assert not client.get(f"/v1/jobs/{job_id}/events", params={"after": seen[-1]}).json()["data"]
    assert seen == list(range(1, len(seen) + 1)), "each once, in order, across two deaths of the API"


def read_events(running: Service, job_id: str, seen: list[int]) -> None:
    """What a browser's EventSource does: connect again with the last id, until there is no more to come."""
    while True:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(seen[-1])} if seen else {})}
        try:
            with running.client as client, client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as lines:
                if lines.status_code == httpx.codes.NO_CONTENT:
                    return
                for line in lines.iter_lines():
                    if line.startswith("id:"):
                        seen.append(int(line.removeprefix("id:")))
        except httpx.TransportError:
            time.sleep(0.2)


def test_a_cancelled_job_says_so(running: Service, zoo: Path) -> None:
    assert glue(running, "zoo", "add", str(zoo / "zoo.yml")).returncode == 0
    job_id = re.findall(r"job_\w+", glue(running, "submit", str(zoo / "job.yml")).stdout)[0]
    assert re.match(rf"{job_id} is cancell(ing|ed)", glue(running, "cancel", job_id).stdout)
    followed = glue(running, "follow", job_id)
    assert followed.returncode == 1
    assert "cancelled" in glue(running, "status", job_id).stdout
    refused = glue(running, "cancel", job_id)
    assert refused.returncode == 1
    assert "error" in refused.stderr
    refused = glue(running, "pull", job_id, "/nowhere")
    assert "only a succeeded job has a model" in words(refused.stderr)


def test_mistakes_are_told_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "zoo.yml").write_text("name: z\nmembers:\n- {name: a, sorce: ./a}\n")
    told = glue(None, "zoo", "add", str(tmp_path / "zoo.yml"), home=tmp_path)
    assert told.returncode == 1
    assert "There is no service to talk to." in told.stderr
    (tmp_path / "client.json").write_text('{"url": "http://127.0.0.1:9", "api_key": "none"}')
    told = glue(None, "zoo", "add", str(tmp_path / "zoo.yml"), home=tmp_path)
    assert "/members/0/sorce: unknown key 'sorce' (did you mean 'source'?)" in told.stderr
    assert "does not answer" in glue(None, "jobs", home=tmp_path).stderr


def test_a_folder_outside_the_roots_is_refused_with_its_place(running: Service, tmp_path: Path) -> None:
    (tmp_path / "zoo.yml").write_text(yaml.safe_dump({"name": "out", "members": [{"name": "a", "source": "/etc"}]}))
    told = glue(running, "zoo", "add", str(tmp_path / "zoo.yml"))
    assert told.returncode == 1
    assert "/members/0/source" in told.stderr
    assert "root" in told.stderr
