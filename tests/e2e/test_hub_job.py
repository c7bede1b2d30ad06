"""The main job with its zoo on the Hub and its result pushed there, over REST on real servers and workers."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.adapters import write_adapter
from tests.support.hub.pushing import holds
from tests.support.hub.server import OWNER, STRANGER_TOKEN, TOKEN, StandIn, hub
from tests.support.main_job import QUICK_RECOVERY, wait
from tests.support.services import Service, service
from tests.support.tiny_zoo import build_tiny_zoo, job_request

REPO = f"{OWNER}/result"

# A process that cannot import our packages, as that of a user who names the repository.
BARE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("glue", "api", "workers"):
            raise ImportError("our packages are not here")
sys.meta_path.insert(0, Refuse())
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], revision="v1", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], revision="v1", trust_remote_code=True)
prompt = tokenizer("one and one", return_tensors="pt")
print(type(model).__name__, tokenizer.decode(model.generate(**prompt, max_new_tokens=8, do_sample=False)[0]))
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def standing(zoo: Path, tmp_path: Path) -> Iterator[StandIn]:
    """The zoo as repositories: one is private and an adapter, one is gated, has granted access and holds pickles."""
    adapter = write_adapter(tmp_path / "bee", zoo / "models" / "base", base=f"{OWNER}/base")
    pickles = shutil.copytree(zoo / "models" / "cat", tmp_path / "cat")
    torch.save(load_file(pickles / "model.safetensors"), pickles / "pytorch_model.bin")
    (pickles / "model.safetensors").unlink()
    with hub(tmp_path / "hub") as running:
        for name in ("base", "ant", "dog"):
            running.store.add_folder(f"{OWNER}/{name}", zoo / "models" / name)
        running.store.add_folder(f"{OWNER}/bee", adapter, private=True)
        running.store.add_folder(f"{OWNER}/cat", pickles, gated=True)
        yield running


def online(standing: StandIn) -> dict[str, str]:
    """The environment of a service that speaks to the stand-in."""
    return QUICK_RECOVERY | {"HF_ENDPOINT": standing.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


def hub_zoo() -> dict[str, Any]:
    """The tiny zoo by names of the Hub, in all their forms."""
    members = [{"name": name, "source": f"{OWNER}/{name}"} for name in ("ant", "bee", "cat")]
    return {
        "name": "tiny",
        "base": {"source": f"hf://{OWNER}/base@main"},
        "members": [*members, {"name": "dog", "source": f"hf://{OWNER}/dog"}],
    }


def submit(running: Service, zoo: Path, **changes: Any) -> Any:
    """Store the token and the zoo, submit the job; the answer."""
    with running.client as client:
        client.put("/v1/hub-token", json={"token": TOKEN}).raise_for_status()
        client.post("/v1/zoos", json=hub_zoo()).raise_for_status()
        return client.post("/v1/jobs", json=job_request(zoo, **changes))


def test_from_the_hub_to_the_hub(zoo: Path, standing: StandIn, tmp_path: Path) -> None:
    options = ("--workers", "2", "--root", str(zoo))
    with service(tmp_path / "home", *options, environment=online(standing)) as running:
        answer = submit(running, zoo, publish={"repo": REPO, "tag": "v1"})
        assert answer.status_code == 201, answer.text
        spec = answer.json()["spec"]
        expected = [f"{OWNER}/{name}" for name in ("base", "ant", "base", "cat", "dog")]
        assert [model["repo"] for model in spec["models"]] == expected
        assert spec["models"][2]["adapter"]["repo"] == f"{OWNER}/bee"
        ended = wait(running, answer.json()["id"])
        assert ended["status"] == "succeeded", ended["error"]
        with running.client as client:
            artifact = client.get(f"/v1/artifacts/{ended['result']['artifact_id']}").json()
            again = client.post(
                "/v1/jobs", json={"kind": "publish", "artifact": artifact["id"], "publish": {"repo": f"{OWNER}/copy"}}
            )
            assert again.status_code == 201, again.text
            copied = wait(running, again.json()["id"])
            assert copied["status"] == "succeeded", copied["error"]
    repository = standing.store.repository(REPO)
    assert ended["published"]["commit"] == repository.tags["v1"] == repository.branches["main"]
    assert repository.private
    assert len(repository.log()) == 2
    folder = tmp_path / "home" / "artifacts" / artifact["location"]
    assert holds(repository.head("v1"), folder)
    assert holds(standing.store.repository(f"{OWNER}/copy").head(copied["published"]["commit"]), folder)
    assert not secret_in(tmp_path / "home" / "logs"), "the token is in a log"
    environment = standing.environment(TOKEN) | {"HF_HOME": str(tmp_path / "user")}
    done = subprocess.run(
        [sys.executable, "-c", BARE, REPO], cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("GlueModelMixtureForCausalLM")


def secret_in(folder: Path) -> list[str]:
    """The files below a folder that hold the owner's token."""
    return [path.name for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_what_cannot_be_published_is_told_at_submission(zoo: Path, standing: StandIn, tmp_path: Path) -> None:
    standing.store.create(f"{OWNER}/public")
    options = ("--workers", "0", "--root", str(zoo))
    with service(tmp_path / "home", *options, environment=online(standing)) as running:
        with running.client as client:
            told = client.post("/v1/zoos", json=hub_zoo())
            assert told.status_code == 422
            codes = {error["pointer"]: error["code"] for error in told.json()["errors"]}
            assert codes == {"/members/1/source": "no_repository", "/members/2/source": "gated"}
            assert client.put("/v1/hub-token", json={"token": "hf_unknown"}).status_code == 422
            assert client.get("/v1/hub-token").status_code == 404
        stored = submit(running, zoo)
        assert stored.status_code == 201
        refusals = {}
        with running.client as client:
            assert client.get("/v1/hub-token").json() | {"created_at": "", "updated_at": ""} == {
                "object": "hub_token", "account": OWNER, "role": "write", "created_at": "", "updated_at": "",
            }  # fmt: skip
            for repo in ("bob/model", f"{OWNER}/public"):
                answer = client.post("/v1/jobs", json=job_request(zoo, publish={"repo": repo}))
                refusals[repo] = [(error["pointer"], error["code"]) for error in answer.json()["errors"]]
            client.put("/v1/hub-token", json={"token": STRANGER_TOKEN}).raise_for_status()
            assert client.post("/v1/jobs", json=job_request(zoo)).status_code == 422
            client.delete("/v1/hub-token").raise_for_status()
            answer = client.post("/v1/jobs", json=job_request(zoo, publish={"repo": REPO}))
            assert ("/publish/repo", "no_hub_token") in [(e["pointer"], e["code"]) for e in answer.json()["errors"]]
    assert refusals == {
        "bob/model": [("/publish/repo", "no_right")],
        f"{OWNER}/public": [("/publish/private", "public_repository")],
    }
