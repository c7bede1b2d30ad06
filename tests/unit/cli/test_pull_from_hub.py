"""`glue pull hf://…`: a published model in a fresh process, verified; a damaged one refused."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub.pushing import REPO, finished_folder, go_online, publish
from tests.support.hub.server import TOKEN, StandIn, hub


@pytest.fixture
def standing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    go_online(monkeypatch)
    with hub(tmp_path / "hub") as running:
        yield running


def pull(standing: StandIn, source: str, folder: Path, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = standing.environment(token) | {"HF_HOME": str(folder.parent / "user"), "COLUMNS": "200"}
    command = [str(Path(sys.executable).with_name("glue")), "pull", source, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_published_model_comes_back_whole(standing: StandIn, tmp_path: Path) -> None:
    made = finished_folder(tmp_path / "made")
    publish(standing, made)
    done = pull(standing, f"hf://{REPO}@v1", tmp_path / "got")
    assert done.returncode == 0, done.stderr
    got = {path.relative_to(tmp_path / "got"): path.read_bytes() for path in (tmp_path / "got").rglob("*.*")}
    assert got == {path.relative_to(made): path.read_bytes() for path in made.rglob("*.*")}
    again = pull(standing, f"hf://{REPO}", tmp_path / "got")
    assert (again.returncode, "is not empty" in again.stderr) == (1, True)


def test_a_changed_file_is_refused(standing: StandIn, tmp_path: Path) -> None:
    publish(standing, finished_folder(tmp_path / "made"))
    repository = standing.store.repository(REPO)
    changed = dict(repository.head("main").files) | {"config.json": standing.store.regular("{}")}
    repository.add_commit("main", changed, "by hand")
    done = pull(standing, f"hf://{REPO}", tmp_path / "got")
    assert done.returncode == 1
    assert "config.json" in done.stderr
    assert not (tmp_path / "got").exists()


def test_a_private_model_needs_a_token(standing: StandIn, tmp_path: Path) -> None:
    publish(standing, finished_folder(tmp_path / "made"))
    done = pull(standing, f"hf://{REPO}", tmp_path / "got", token=None)
    assert done.returncode == 1
    assert "may not see it" in done.stderr
