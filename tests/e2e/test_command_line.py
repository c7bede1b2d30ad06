"""`glue …` as a person types it, in a terminal of 80 columns, against a running service."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.main_job import QUICK_RECOVERY
from tests.support.services import Service, service
from tests.support.tiny_zoo import build_tiny_zoo, job_request

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
