"""Pushes against the stand-in as tests need them: a finished folder, the client set to loopback, a process to kill."""

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from glue.checkpoints.manifest import read_manifest, write_manifest
from glue.publishing.push import Published, push
from glue.specs.publish import PublishSpec
from tests.support.hub.server import OWNER, TOKEN, StandIn
from tests.support.hub.store import ATTRIBUTES, Commit

REPO = f"{OWNER}/model"
MARK = "Model-GLUE unit unit_1"

PUSHER = """
import sys
from pathlib import Path
import huggingface_hub
from huggingface_hub import HfApi
from glue.checkpoints.manifest import read_manifest
from glue.publishing.push import push
from glue.specs.publish import PublishSpec
folder, repo, mark = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
print(huggingface_hub.__version__, flush=True)
made = push(folder, read_manifest(folder), PublishSpec(repo=repo, tag=sys.argv[4] or None), mark=mark,
            api=HfApi(), say=lambda fraction, line: None)
print(made.commit, flush=True)
"""


def finished_folder(folder: Path, seed: int = 0, weights: int = 300_000) -> Path:
    """A small artifact: weights in two shards, texts, a picture, a manifest."""
    (folder / "plots").mkdir(parents=True)
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\n# model {seed}\n")
    (folder / "config.json").write_text(f'{{"seed": {seed}}}')
    (folder / "plots" / "models.png").write_bytes(bytes([seed]) * 3000)
    for shard in (1, 2):
        content = bytes((seed + shard + n * n) % 251 for n in range(1000)) * (weights // 2000)
        (folder / f"model-0000{shard}-of-00002.safetensors").write_bytes(content)
    write_manifest(folder, token=0)
    return folder


def go_online(monkeypatch: pytest.MonkeyPatch, *, xet: bool = False) -> None:
    """Let this process's client speak to the stand-in, which is on loopback, and to nobody else."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", not xet)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)


def publish(standing: StandIn, folder: Path, *, mark: str = MARK, token: str = TOKEN, **target: object) -> Published:
    """Push the folder from this process."""
    api = HfApi(endpoint=standing.url, token=token)
    spec = PublishSpec.parse({"repo": REPO, "tag": "v1"} | target)
    return push(folder, read_manifest(folder), spec, mark=mark, api=api, say=lambda fraction, line: None)


def start_pusher(
    standing: StandIn, folder: Path, *, mark: str = MARK, tag: str = "v1", xet: bool = False, client: Path | None = None
) -> subprocess.Popen[str]:
    """The same in a process of its own, which may be killed; with another `client` if its folder is given."""
    places = [client, Path(__file__).parents[3]] if client else [Path(__file__).parents[3]]
    environment = standing.environment(TOKEN, xet=xet) | {"PYTHONPATH": os.pathsep.join(map(str, places))}
    command = [sys.executable, "-c", PUSHER, str(folder), REPO, mark, tag]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def holds(commit: Commit, folder: Path) -> bool:
    """Whether a commit has exactly the folder's files, byte for byte."""
    found = {path: entry.location.read_bytes() for path, entry in commit.files.items() if path != ATTRIBUTES}
    expected = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return found == expected


def main_commits(standing: StandIn, repo: str = REPO) -> list[Commit]:
    """What was added to main since the repository was made, newest first; nothing without a repository."""
    repository = standing.store.repositories.get(repo)
    return repository.log("main")[:-1] if repository else []
