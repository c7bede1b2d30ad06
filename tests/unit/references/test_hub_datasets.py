"""Data sets from the stand-in: pinned to a commit, fetched once, read offline afterwards."""

from pathlib import Path

import pytest

from glue.references.data_files import DataNeed
from glue.references.hub_access import HubAccess, HubUnavailableError
from glue.references.hub_datasets import DataSets, download_data
from glue.specs.errors import InvalidInputError
from tests.support.data_sets import add_data_set
from tests.support.hub.server import OWNER, STRANGER_TOKEN, TOKEN, StandIn

REPO = f"{OWNER}/questions"
SPLITS = {"test": [{"q": "one"}, {"q": "two"}], "train": [{"q": "shot"}]}


def wanted(*splits: str, revision: str = "main") -> DataNeed:
    return DataNeed(REPO, revision, "main", splits)


def test_a_branch_is_pinned_to_its_commit_and_only_needed_files_are_fetched(standing: StandIn, tmp_path: Path) -> None:
    commit = add_data_set(standing.store, REPO, tmp_path / "data", SPLITS, "main")
    access = HubAccess(standing.url, tmp_path / "cache")
    found = DataSets(access).find(wanted("test"))
    assert found.commit == commit
    assert found.splits == {"test": ("main/test-00000-of-00001.parquet",)}
    said: list[str] = []
    folder = download_data(REPO, commit, found.splits["test"], access, lambda fraction, line: said.append(line))
    assert folder == found.folder
    assert [path.name for path in folder.rglob("*.parquet")] == ["test-00000-of-00001.parquet"]
    assert said
    # A later commit is another revision; the pinned one stays what it was.
    add_data_set(standing.store, REPO, tmp_path / "more", {"test": [{"q": "three"}]}, "main")
    before = len(standing.faults.requests)
    download_data(REPO, commit, found.splits["test"], access, lambda *_: None)
    assert len(standing.faults.requests) == before
    assert DataSets(access).find(wanted("test")).commit != commit


def test_offline_what_was_seen_before_is_used(
    standing: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = add_data_set(standing.store, REPO, tmp_path / "data", SPLITS, "main")
    access = HubAccess(standing.url, tmp_path / "cache")
    online = DataSets(access).find(wanted("test"))
    download_data(REPO, commit, online.splits["test"], access, lambda *_: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert DataSets(access).find(wanted("test")) == online
    assert download_data(REPO, commit, online.splits["test"], access, lambda *_: None) == online.folder
    with pytest.raises(HubUnavailableError, match="was not downloaded yet, and this service is offline"):
        download_data(REPO, commit, ["main/train-00000-of-00001.parquet"], access, lambda *_: None)
    with pytest.raises(InvalidInputError, match="is not here, and the service is offline; submit it once"):
        DataSets(access).find(wanted("test", revision="v2"))
    with pytest.raises(InvalidInputError, match="is not here"):
        DataSets(HubAccess(standing.url, tmp_path / "cache", token=STRANGER_TOKEN)).find(wanted("test"))


def test_private_and_gated_data_sets_need_the_right(standing: StandIn, tmp_path: Path) -> None:
    add_data_set(standing.store, REPO, tmp_path / "data", SPLITS, "main", private=True)
    assert DataSets(HubAccess(standing.url, tmp_path / "cache", token=TOKEN)).find(wanted("test"))
    with pytest.raises(InvalidInputError, match="does not exist, or your token may not see it"):
        DataSets(HubAccess(standing.url, tmp_path / "cache", token=STRANGER_TOKEN)).find(wanted("test"))
    gated = DataNeed(f"{OWNER}/gated", "main", "main", ("test",))
    add_data_set(standing.store, gated.repo, tmp_path / "gated", SPLITS, "main", gated=True)
    with pytest.raises(InvalidInputError, match="accept its terms"):
        DataSets(HubAccess(standing.url, tmp_path / "cache", token=STRANGER_TOKEN)).find(gated)
