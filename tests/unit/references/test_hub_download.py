"""Downloads from the stand-in: whole and checked, resumed, shared, within a budget."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glue.checkpoints.guarded import convert_in_a_process
from glue.references.headers import folder_tensors
from glue.references.hub_access import HubAccess, HubUnavailableError
from glue.references.hub_cache import used_bytes
from glue.references.hub_download import download
from glue.specs.errors import DiskFullError, InvalidInputError
from tests.support.hub.faults import Fault, rate_limit
from tests.support.hub.server import OWNER, TOKEN, StandIn
from tests.support.model_folders import write_model

REPO = f"{OWNER}/a"
# The weights of a model of these tests.
WEIGHTS = 3_000_000

LOADER = """
import sys
from pathlib import Path
from glue.references.hub_access import HubAccess
from glue.references.hub_download import download
print("begins", flush=True)
print(download(sys.argv[1], sys.argv[2], HubAccess(sys.argv[3], Path(sys.argv[4])), lambda *_: None, lambda *_: None))
"""


def add_model(standing: StandIn, folder: Path, repo: str = REPO, *, seed: int = 0, private: bool = False) -> str:
    """A model of some megabytes with a tokenizer; the oid of its commit."""
    write_model(folder)
    write_weights(folder / "model.safetensors", seed)
    return standing.store.add_folder(repo, folder, private=private)


def write_weights(path: Path, seed: int) -> None:
    header = f'{{"w":{{"dtype":"U8","shape":[{WEIGHTS}],"data_offsets":[0,{WEIGHTS}]}}}}'.encode()
    content = bytes((seed + n * n) % 251 for n in range(1000)) * (WEIGHTS // 1000)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)


def fetch(standing: StandIn, cache: Path, commit: str, repo: str = REPO, **access: object) -> Path:
    way = HubAccess(standing.url, cache, **access)  # type: ignore[arg-type]
    return download(repo, commit, way, lambda fraction, line: None, convert_in_a_process)


def weights_sent(standing: StandIn) -> int:
    """The bytes of weights that the stand-in has sent."""
    return sum(request.sent for request in standing.requests("GET", "/cdn/"))


def same(found: Path, folder: Path) -> bool:
    """Whether all that makes the model arrived, byte for byte."""
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    return all((found / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_a_model_arrives_whole_with_progress(standing: StandIn, tmp_path: Path) -> None:
    commit = add_model(standing, tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("not a part of the model")
    told: list[float] = []
    way = HubAccess(standing.url, tmp_path / "cache")
    found = download(REPO, commit, way, lambda fraction, line: told.append(fraction), convert_in_a_process)
    (tmp_path / "a" / "README.md").unlink()
    assert same(found, tmp_path / "a")
    assert set(folder_tensors(found)) == {"w"}
    assert told[-1] == 1.0
    assert len(set(told)) > 3


def test_the_second_time_nothing_is_fetched(standing: StandIn, tmp_path: Path) -> None:
    commit = add_model(standing, tmp_path / "a")
    first = fetch(standing, tmp_path / "cache", commit)
    before = len(standing.requests())
    assert fetch(standing, tmp_path / "cache", commit) == first
    assert len(standing.requests()) == before


def test_equal_files_of_other_repositories_are_fetched_once(standing: StandIn, tmp_path: Path) -> None:
    commits = [add_model(standing, tmp_path / name, f"{OWNER}/{name}") for name in ("a", "b")]
    for name, commit in zip(("a", "b"), commits, strict=True):
        assert same(fetch(standing, tmp_path / "cache", commit, f"{OWNER}/{name}"), tmp_path / name)
    assert weights_sent(standing) < 1.1 * WEIGHTS


FAULTS = {
    "429": rate_limit("GET", "", 2),
    "503": Fault("status", "GET", "", 2, status=503),
    "drop": Fault("drop", "GET", "", 2),
    "slow": Fault("slow", "GET", "", 4),
    "truncate": Fault("truncate", "GET", "", 2, size=100),
    "corrupt": Fault("corrupt", "GET", "/cdn/", 2),
    "truncated weights": Fault("truncate", "GET", "/cdn/", 2, size=1_000_000),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_end_right(fault: str, standing: StandIn, tmp_path: Path) -> None:
    commit = add_model(standing, tmp_path / "a")
    FAULTS[fault].hits = 0
    with standing.faults.failing(FAULTS[fault]):
        found = fetch(standing, tmp_path / "cache", commit)
    assert FAULTS[fault].hits > 2 or fault == "corrupt"
    assert same(found, tmp_path / "a")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["status", "drop", "truncate", "slow", "corrupt"])
def test_a_fault_at_each_step(kind: str, standing: StandIn, tmp_path: Path) -> None:
    commit = add_model(standing, tmp_path / "a")
    fetch(standing, tmp_path / "clean", commit)
    for place in range(len(standing.requests())):
        with standing.faults.failing(Fault(kind, "*", "", 1, place, status=503, size=10)):  # type: ignore[arg-type]
            assert same(fetch(standing, tmp_path / f"cache{place}", commit), tmp_path / "a"), place


def test_a_broken_download_goes_on_where_it_stood(standing: StandIn, tmp_path: Path) -> None:
    commit = add_model(standing, tmp_path / "a")
    with standing.faults.failing(Fault("truncate", "GET", "/cdn/", size=2_000_000)):
        fetch(standing, tmp_path / "cache", commit)
    first, second = standing.requests("GET", "/cdn/")
    start = int(second.range.removeprefix("bytes=").partition("-")[0])
    assert first.sent - 128 * 1024 < start <= first.sent
    assert weights_sent(standing) < 1.1 * WEIGHTS


def test_what_stays_damaged_is_told(standing: StandIn, tmp_path: Path) -> None:
    commit = add_model(standing, tmp_path / "a")
    corrupt = Fault("corrupt", "GET", "/cdn/", times=99)
    with standing.faults.failing(corrupt), pytest.raises(HubUnavailableError, match="damaged"):
        fetch(standing, tmp_path / "cache", commit)
    assert not list((tmp_path / "cache" / "blobs").glob("*.partial"))
    assert same(fetch(standing, tmp_path / "cache", commit), tmp_path / "a")


def test_rights_are_the_owners(standing: StandIn, tmp_path: Path) -> None:
    commit = add_model(standing, tmp_path / "a", private=True)
    with pytest.raises(InvalidInputError, match="may not see it"):
        fetch(standing, tmp_path / "cache", commit)
    assert same(fetch(standing, tmp_path / "cache", commit, token=TOKEN), tmp_path / "a")
    elsewhere = [request for request in standing.requests("GET", "/cdn/") if request.authorised]
    assert not elsewhere, "the token went to another host"


def test_two_workers_fetch_each_file_once(standing: StandIn, tmp_path: Path) -> None:
    commit = add_model(standing, tmp_path / "a")
    with standing.faults.failing(Fault("slow", "GET", "/cdn/", 9)):
        loaders = [start_loader(standing, commit, tmp_path / "cache") for _ in range(2)]
        told = [loader.communicate(timeout=60)[0].splitlines()[-1] for loader in loaders]
    assert told[0] == told[1]
    assert same(Path(told[0]), tmp_path / "a")
    assert weights_sent(standing) < 1.1 * WEIGHTS


def test_a_killed_worker_loses_little(standing: StandIn, tmp_path: Path) -> None:
    commit = add_model(standing, tmp_path / "a")
    with standing.faults.failing(Fault("slow", "GET", "/cdn/", 9, seconds=0.2)):
        loader = start_loader(standing, commit, tmp_path / "cache")
        deadline = time.monotonic() + 30
        while partial_bytes(tmp_path / "cache") < 1_000_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(loader.pid, signal.SIGKILL)
        loader.communicate()
    kept = partial_bytes(tmp_path / "cache")
    assert same(fetch(standing, tmp_path / "cache", commit), tmp_path / "a")
    assert standing.requests("GET", "/cdn/")[-1].range.startswith(f"bytes={kept}-")


def start_loader(standing: StandIn, commit: str, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOADER, REPO, commit, standing.url, str(cache)]
    environment = standing.environment() | {"PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)


def partial_bytes(cache: Path) -> int:
    return sum(path.stat().st_size for path in (cache / "blobs").glob("*.partial"))


def test_the_budget_holds_and_the_oldest_goes(standing: StandIn, tmp_path: Path) -> None:
    cache, budget, commits = tmp_path / "cache", int(2.5 * WEIGHTS), {}
    for seed, name in enumerate("abc"):
        commits[name] = add_model(standing, tmp_path / name, f"{OWNER}/{name}", seed=seed)
    found = {}
    for name in "ab":
        found[name] = fetch(standing, cache, commits[name], f"{OWNER}/{name}", budget=budget)
        time.sleep(0.02)
    fetch(standing, cache, commits["a"], f"{OWNER}/a", budget=budget)
    time.sleep(0.02)
    found["c"] = fetch(standing, cache, commits["c"], f"{OWNER}/c", budget=budget)
    assert [found[name].exists() for name in "abc"] == [True, False, True]
    assert same(found["a"], tmp_path / "a")
    assert used_bytes(cache) <= budget
    assert same(fetch(standing, cache, commits["b"], f"{OWNER}/b"), tmp_path / "b")


def test_what_jobs_need_stays(standing: StandIn, tmp_path: Path) -> None:
    cache, budget = tmp_path / "cache", int(1.5 * WEIGHTS)
    first = add_model(standing, tmp_path / "a")
    second = add_model(standing, tmp_path / "b", f"{OWNER}/b", seed=1)
    kept = fetch(standing, cache, first, budget=budget)
    with pytest.raises(DiskFullError, match="the budget is"):
        fetch(standing, cache, second, f"{OWNER}/b", budget=budget, kept=frozenset({str(kept)}))
    assert same(kept, tmp_path / "a")


def test_offline_what_is_there_is_enough(standing: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = add_model(standing, tmp_path / "a")
    found = fetch(standing, tmp_path / "cache", commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = len(standing.requests())
    assert fetch(standing, tmp_path / "cache", commit) == found
    with pytest.raises(HubUnavailableError, match="offline"):
        fetch(standing, tmp_path / "other", commit)
    assert len(standing.requests()) == before
