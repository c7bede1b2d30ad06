"""Text that routers learn from is found beside the file or on the Hub, downloaded once, and read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from glue.mixture.found_texts import access_of_environment, find_texts
from glue.mixture.training_text import read_examples
from glue.references.hub_access import HubAccess
from glue.specs.errors import InvalidInputError
from tests.support.data_sets import add_data_set
from tests.support.hub.pushing import go_online
from tests.support.hub.server import OWNER, StandIn, hub
from tests.support.models import char_tokenizer

REPO = f"{OWNER}/dialogues"
SPLITS = {"train": [{"prompt": "1+1=", "response": "2"}, {"prompt": "2+2=", "response": "4"}], "test": [{"text": "x"}]}


@pytest.fixture
def standing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    go_online(monkeypatch)
    with hub(tmp_path / "hub") as running:
        yield running


def found(sources: list[str], root: Path, access: HubAccess, subset: str | None = None) -> tuple[Path, ...]:
    return find_texts(sources, "train", subset, root, access, lambda fraction, line: None)


@pytest.mark.parametrize("subset", [None, "main"])
def test_files_and_a_split_of_a_data_set(standing: StandIn, tmp_path: Path, subset: str | None) -> None:
    commit = add_data_set(standing.store, REPO, tmp_path / "data", SPLITS, subset)
    (tmp_path / "own.jsonl").write_text('{"text": "abc"}\n')
    access = HubAccess(standing.url, tmp_path / "cache")
    files = found(["own.jsonl", f"hf://{REPO}"], tmp_path, access, subset)
    assert files[0] == tmp_path / "own.jsonl"
    assert commit in files[1].parts
    assert len(read_examples(files, char_tokenizer(), length=64, most=9, seed=0)) == 3
    # The commit is pinned by name, and its files are there.
    before = len(standing.faults.requests)
    assert found([f"hf://{REPO}@{commit}"], tmp_path, access, subset) == files[1:]
    assert not [request for request in standing.faults.requests[before:] if "resolve" in str(request)][1:]


def test_what_is_not_there_is_told(standing: StandIn, tmp_path: Path) -> None:
    add_data_set(standing.store, REPO, tmp_path / "data", {"test": SPLITS["test"]})
    access = HubAccess(standing.url, tmp_path / "cache")
    with pytest.raises(InvalidInputError, match="no split 'train'"):
        found([f"hf://{REPO}"], tmp_path, access)
    with pytest.raises(InvalidInputError, match="does not exist"):
        found([f"hf://{OWNER}/nothing"], tmp_path, access)
    with pytest.raises(InvalidInputError) as error:
        found(["a.jsonl"], tmp_path, access)
    assert error.value.problems[0].pointer == "/router/train/data/0"


def test_the_users_own_access(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1/")
    access = access_of_environment()
    assert (access.endpoint, access.token, access.cache.name) == ("http://127.0.0.1:1", "hf_of_the_test", "model-glue")
