"""The main job over REST on real servers and workers, compared with the recipe in one process."""

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from glue.cli.client import Client
from glue.cli.pull import pull
from tests.support.in_process import InProcess
from tests.support.main_job import QUICK_RECOVERY, submit, wait
from tests.support.services import service
from tests.support.tiny_zoo import build_tiny_zoo, job_spec

# Runs in a process that cannot import our packages, as a user who pulled the model would.
BARE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("glue", "api", "workers"):
            raise ImportError("our packages are not here")
sys.meta_path.insert(0, Refuse())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
prompt = tokenizer("one and one", return_tensors="pt")
cached = model.generate(**prompt, max_new_tokens=12, do_sample=False)
plain = model.generate(**prompt, max_new_tokens=12, do_sample=False, use_cache=False)
assert torch.equal(cached, plain)
print(type(model).__name__, tokenizer.decode(cached[0]))
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def expected(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sha256:{InProcess(job_spec(zoo), tmp_path_factory.mktemp('home')).run()['digest']}"


@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_workers_ends_in_the_digest_of_one_process(
    workers: int, zoo: Path, expected: str, tmp_path: Path
) -> None:
    folder = tmp_path / "pulled"
    options = ("--workers", str(workers), "--root", str(zoo))
    with service(tmp_path / "home", *options, environment=QUICK_RECOVERY) as running:
        # An equal job beside it: the two must not meet in their work.
        twins = [submit(running, zoo) for _ in range(2)]
        ended, other = (wait(running, job_id) for job_id in twins)
        assert other["result"]["digest"] == expected, other["error"]
        assert ended["status"] == "succeeded", ended["error"]
        assert ended["progress"]["percent"] == 100
        assert ended["result"]["digest"] == expected
        with running.client as client:
            report = client.get(f"/v1/jobs/{ended['id']}/report").json()
            events = client.get(f"/v1/jobs/{ended['id']}/events", params={"limit": 500}).json()["data"]
            trials = client.get(f"/v1/jobs/{ended['id']}/units", params={"stage": "search"}).json()["data"]
            scored = next(unit["id"] for unit in trials if unit["kind"] == "score.candidate")
            trial = client.get(f"/v1/jobs/{ended['id']}/units/{scored}").json()
        with Client(running.url, running.api_key) as glue:
            pull(glue, glue.artifact(ended["result"]["artifact_id"]), folder, Console(quiet=True))
    assert not list((tmp_path / "home" / "work").iterdir())
    assert report["artifact"] == "mixture"
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["type"] == "job.succeeded"
    assert trial["mergekit"]["merge_method"] == "linear"
    assert trial["result"]["score"]["tasks"][0]["task"] == "choose"
    assert trial["result"]["score_seconds"] > 0
    assert {path.name for path in (folder / "plots").iterdir()} == {"models.png", "search.png", "similarity.png"}
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(folder)], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("GlueModelMixtureForCausalLM")
