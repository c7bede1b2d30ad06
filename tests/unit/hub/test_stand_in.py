"""The real client against the stand-in: what the Hub promises it, the stand-in keeps."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub.faults import Fault, rate_limit
from tests.support.hub.server import EXPIRED_TOKEN, OWNER, READ_TOKEN, STRANGER_TOKEN, TOKEN, StandIn, hub

WEIGHTS = bytes(range(256)) * 400

PUSH = """
import sys, json, time
from huggingface_hub import HfApi, CommitOperationCopy, CommitOperationDelete, snapshot_download
api, repo, folder = HfApi(), sys.argv[1], sys.argv[2]
api.create_repo(repo, private=True, exist_ok=True)
base = api.model_info(repo).sha
api.create_branch(repo, branch="job-1", exist_ok=True)
first = api.upload_folder(repo_id=repo, folder_path=folder, revision="job-1").oid
again = api.upload_folder(repo_id=repo, folder_path=folder, revision="job-1").oid
paths = [f.path for f in api.list_repo_tree(repo, revision=first, recursive=True) if f.path != ".gitattributes"]
copies = [CommitOperationCopy(path, path, src_revision=first) for path in paths]
made = api.create_commit(repo, copies, commit_message="all of it", parent_commit=base).oid
try:
    api.create_commit(repo, [CommitOperationDelete("config.json")], commit_message="late", parent_commit=base)
    late = 0
except Exception as error:
    late = getattr(getattr(error, "response", None), "status_code", 0)
api.create_tag(repo, tag="v1", revision=made)
pulled = snapshot_download(repo, revision="v1", cache_dir=sys.argv[3])
print(json.dumps({"again": first == again, "made": made, "pulled": pulled, "late": late}))
"""


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[StandIn]:
    with hub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "plots").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# a model\n")
    (folder / "plots" / "a.txt").write_text("a")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


def run(code: str, environment: dict[str, str], *arguments: object) -> Any:
    """The JSON that a fresh process prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
@pytest.mark.parametrize("parts", [0, 30_000], ids=["whole", "parts"])
def test_create_upload_branch_commit_tag_download(xet: bool, parts: int, folder: Path, tmp_path: Path) -> None:
    with hub(tmp_path / "hub", parts) as standing:
        told = run(PUSH, standing.environment(TOKEN, xet=xet), f"{OWNER}/model", folder, tmp_path / "cache")
        repository = standing.store.repository(f"{OWNER}/model")
        assert told["again"], "a second upload of the same folder made a commit"
        assert told["late"] == 412
        assert len(repository.log("main")) == 2
        assert repository.tags["v1"] == told["made"]
        assert repository.private
        assert {p.name for p in Path(told["pulled"]).rglob("*") if p.is_file()} > {"config.json", "a.txt"}
        assert (Path(told["pulled"]) / "model.safetensors").read_bytes() == WEIGHTS
        entry = repository.head("main").files["model.safetensors"]
        assert entry.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
        assert bool(entry.xet) == xet
        puts = [request.path for request in standing.requests("PUT")]
        assert len(puts) == (0 if xet else 4 if parts else 1)


READ = """
import sys, json
from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
out = {}
for repo in sys.argv[1:]:
    try:
        info = HfApi().model_info(repo, files_metadata=True)
        size = next(s.size for s in info.siblings if s.rfilename == "model.safetensors")
        headers = build_hf_headers() | {"Range": "bytes=256-259"}
        answer = get_session().get(hf_hub_url(repo, "model.safetensors", revision=info.sha), headers=headers)
        hf_raise_for_status(answer)
        out[repo] = [size, list(answer.content)]
    except Exception as error:
        out[repo] = type(error).__name__
print(json.dumps(out))
"""


def test_who_may_read_what(standing: StandIn, folder: Path) -> None:
    for name, rights in {"open": {}, "private": {"private": True}, "gated": {"gated": True}}.items():
        standing.store.add_folder(f"{OWNER}/{name}", folder, **rights)
    repos = [f"{OWNER}/{name}" for name in ("open", "private", "gated", "missing")]
    whole, none, gated = [len(WEIGHTS), [0, 1, 2, 3]], "RepositoryNotFoundError", "GatedRepoError"
    expected = {
        None: [whole, none, gated, none],
        TOKEN: [whole, whole, whole, none],
        STRANGER_TOKEN: [whole, none, gated, none],
        READ_TOKEN: [whole, whole, whole, none],
        EXPIRED_TOKEN: ["HfHubHTTPError"] * 4,
    }
    for token, answers in expected.items():
        told = run(READ, standing.environment(token), *repos)
        assert list(told.values()) == answers, token


WRITE = """
import sys, json
from huggingface_hub import HfApi
try:
    HfApi().create_repo(sys.argv[1])
    print(json.dumps(0))
except Exception as error:
    print(json.dumps(error.response.status_code))
"""


@pytest.mark.parametrize(("token", "status"), [(TOKEN, 0), (READ_TOKEN, 403), (STRANGER_TOKEN, 403), (None, 401)])
def test_who_may_write(token: str | None, status: int, standing: StandIn) -> None:
    assert run(WRITE, standing.environment(token), f"{OWNER}/new") == status


CARD = """
import sys, json
from huggingface_hub import HfApi
try:
    HfApi().upload_file(path_or_fileobj=sys.argv[2].encode(), path_in_repo="README.md", repo_id=sys.argv[1])
    print(json.dumps(""))
except Exception as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.parametrize(
    ("block", "wrong"),
    [
        ("license: apache-2.0\nbase_model: [a/b, c/d]\nbase_model_relation: merge", ""),
        ("license: my-own", "license"),
        ("base_model: [1, 2]", "base_model"),
        ("base_model_relation: mix", "base_model_relation"),
        ("model-index: [{name: m, results: [{task: {type: t}, metrics: [{type: acc, value: 1}]}]}]", "dataset"),
    ],
)
def test_metadata_of_a_card_is_checked(block: str, wrong: str, standing: StandIn) -> None:
    standing.store.create(f"{OWNER}/card")
    told = run(CARD, standing.environment(TOKEN), f"{OWNER}/card", f"---\n{block}\n---\n# card\n")
    assert bool(told) == bool(wrong)
    assert wrong in told


FETCH = """
import sys, json, time
from huggingface_hub import HfApi, snapshot_download
began = time.monotonic()
try:
    snapshot_download(sys.argv[1], cache_dir=sys.argv[2], max_workers=1)
    told = "whole"
except Exception as error:
    told = type(error).__name__
print(json.dumps([told, time.monotonic() - began]))
"""


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (rate_limit("GET", "/tree/"), "whole"),
        (Fault("status", "GET", "/cdn/", status=503), "HfHubHTTPError"),
        (Fault("truncate", "GET", "/cdn/"), "whole"),
        (Fault("drop", "GET", "/cdn/"), "whole"),
        (Fault("slow", "GET", "/cdn/"), "whole"),
    ],
    ids=["429", "503", "truncate", "drop", "slow"],
)
def test_faults_reach_the_client_which_copes(
    fault: Fault, told: str, standing: StandIn, folder: Path, tmp_path: Path
) -> None:
    standing.store.add_folder(f"{OWNER}/model", folder)
    with standing.faults.failing(fault):
        answer, _ = run(FETCH, standing.environment(), f"{OWNER}/model", tmp_path / "cache")
    assert answer == told
    assert fault.hits >= 1
