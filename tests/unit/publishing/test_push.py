"""Pushes to the stand-in: whole, once, and never half, whatever breaks."""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import glue.references.hub_access
from glue.references.hub_access import HubConflictError
from glue.specs.errors import Fault as Blame
from glue.specs.errors import GlueError, InvalidInputError
from tests.support.hub.faults import Fault, rate_limit
from tests.support.hub.pushing import (
    MARK,
    REPO,
    finished_folder,
    go_online,
    holds,
    main_commits,
    publish,
    start_pusher,
)
from tests.support.hub.server import EXPIRED_TOKEN, READ_TOKEN, StandIn, hub

KINDS = {
    "429": lambda n: rate_limit("*", "", 1, n),
    "500": lambda n: Fault("status", "*", "", 1, n, status=500),
    "403": lambda n: Fault("status", "*", "", 1, n, status=403),
    "401": lambda n: Fault("status", "*", "", 1, n, status=401),
    "412": lambda n: Fault("status", "*", "", 1, n, status=412),
    "drop": lambda n: Fault("drop", "*", "", 1, n),
    "lose": lambda n: Fault("lose", "*", "", 1, n),
    "slow": lambda n: Fault("slow", "*", "", 1, n, seconds=0.2),
    "truncate": lambda n: Fault("truncate", "*", "", 1, n, size=10),
}


@pytest.fixture
def standing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    go_online(monkeypatch)
    monkeypatch.setattr(glue.references.hub_access, "sleep", lambda seconds: None)
    with hub(tmp_path / "hub") as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_folder(tmp_path_factory.mktemp("artifact") / "one")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_folder(tmp_path_factory.mktemp("artifact") / "other", seed=9)


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_the_whole_folder_in_one_commit_private_and_tagged(
    xet: bool, standing: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_online(monkeypatch, xet=xet)
    made = publish(standing, folder)
    repository = standing.store.repository(REPO)
    (commit,) = main_commits(standing)
    assert holds(commit, folder)
    assert made.commit == commit.oid == repository.tags["v1"]
    assert repository.private
    assert list(repository.branches) == ["main"]
    assert MARK in commit.message


def test_a_repetition_adds_nothing(standing: StandIn, folder: Path) -> None:
    assert publish(standing, folder) == publish(standing, folder)
    assert publish(standing, folder, mark="another unit").commit == main_commits(standing)[0].oid
    assert len(main_commits(standing)) == 1


def test_a_repetition_after_somebody_elses_push_adds_nothing(standing: StandIn, folder: Path, other: Path) -> None:
    first = publish(standing, folder, tag="a")
    second = publish(standing, other, mark="unit_2", tag="b")
    assert publish(standing, folder, tag="a") == first
    assert [commit.oid for commit in main_commits(standing)] == [second.commit, first.commit]
    assert holds(standing.store.repository(REPO).head("main"), other), "files of the first model stayed behind"


def test_nothing_becomes_public_by_surprise(standing: StandIn, folder: Path) -> None:
    standing.store.create(REPO)
    with pytest.raises(InvalidInputError, match="is public") as refused:
        publish(standing, folder)
    assert refused.value.problems[0].pointer == "/publish/private"
    assert not main_commits(standing)
    publish(standing, folder, private=False)
    assert holds(standing.store.repository(REPO).head("main"), folder)


def test_a_tag_is_never_moved(standing: StandIn, folder: Path, other: Path) -> None:
    publish(standing, folder)
    with pytest.raises(InvalidInputError, match="has the tag v1 already"):
        publish(standing, other, mark="unit_2")
    assert len(main_commits(standing)) == 1


@pytest.mark.parametrize(("token", "word"), [(READ_TOKEN, "no_right"), (EXPIRED_TOKEN, "token_refused")])
def test_a_token_without_the_right_is_told(token: str, word: str, standing: StandIn, folder: Path) -> None:
    with pytest.raises(InvalidInputError) as refused:
        publish(standing, folder, token=token)
    assert refused.value.problems[0].code == word
    assert token not in refused.value.detail
    assert not main_commits(standing)


def test_a_token_that_expires_half_way_leaves_main_alone(standing: StandIn, folder: Path) -> None:
    over = Fault("status", "POST", "/commit/main", 99, status=401)
    with standing.faults.failing(over), pytest.raises(InvalidInputError, match="expired"):
        publish(standing, folder)
    assert not main_commits(standing)
    publish(standing, folder)
    assert len(main_commits(standing)) == 1


def test_who_comes_late_changes_nothing_and_then_comes_again(standing: StandIn, folder: Path, other: Path) -> None:
    publish(standing, folder, tag=None)
    # Another publisher's commit arrives while this one is between its look at main and its commit.
    moved = Fault("status", "POST", "/commit/main", status=412)
    with standing.faults.failing(moved), pytest.raises(HubConflictError) as late:
        publish(standing, other, mark="unit_2", tag=None)
    assert late.value.fault is Blame.TRANSIENT
    assert len(main_commits(standing)) == 1
    publish(standing, other, mark="unit_2", tag=None)
    assert len(main_commits(standing)) == 2


def test_two_publishers_at_once_do_not_mix(standing: StandIn, folder: Path, other: Path) -> None:
    folders = {"unit_a": folder, "unit_b": other}
    pushers = {mark: start_pusher(standing, each, mark=mark, tag="") for mark, each in folders.items()}
    for pusher in pushers.values():
        pusher.communicate(timeout=60)
    for mark, each in folders.items():
        publish(standing, each, mark=mark, tag=None)
    commits = main_commits(standing)
    assert len(commits) == 2
    assert all(holds(commit, folder) or holds(commit, other) for commit in commits)


def test_two_publishers_of_one_unit_make_one_commit(standing: StandIn, folder: Path) -> None:
    pushers = [start_pusher(standing, folder) for _ in range(2)]
    for pusher in pushers:
        pusher.communicate(timeout=60)
    publish(standing, folder)
    assert len(main_commits(standing)) == 1
    assert holds(main_commits(standing)[0], folder)


def steps(standing: StandIn, folder: Path) -> list[str]:
    """The requests of an undisturbed push."""
    publish(standing, folder)
    found = [f"{request.method} {request.path}" for request in standing.requests()]
    del standing.store.repositories[REPO]
    standing.faults.requests.clear()
    for blob in (standing.store.root / "blobs").iterdir():
        blob.unlink()
    return found


def strike(standing: StandIn, folder: Path, fault: Fault) -> None:
    """Push under a fault, then without; in between main holds the whole model or nothing, at the end one commit."""
    # Nothing but an error of ours, with its reason, may come out of it.
    with standing.faults.failing(fault), suppress(GlueError):
        publish(standing, folder)
    commits = main_commits(standing)
    assert len(commits) <= 1
    assert all(holds(commit, folder) for commit in commits)
    publish(standing, folder)
    (commit,) = main_commits(standing)
    assert holds(commit, folder)
    assert standing.store.repository(REPO).tags == {"v1": commit.oid}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_the_commit_to_main(kind: str, standing: StandIn, folder: Path) -> None:
    place = next(n for n, step in enumerate(steps(standing, folder)) if step.endswith("/commit/main"))
    strike(standing, folder, KINDS[kind](place))


@pytest.mark.parametrize("part", ["/repos/create", "/branch/", "PUT /lfs/", "/commit/glue-", "/tree/", "/tag/"])
def test_a_lost_answer_at_every_kind_of_step(part: str, standing: StandIn, folder: Path) -> None:
    place = next(n for n, step in enumerate(steps(standing, folder)) if part in step)
    strike(standing, folder, KINDS["lose"](place))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_each_step(kind: str, tmp_path: Path, folder: Path, standing: StandIn) -> None:
    for place in range(len(steps(standing, folder))):
        with hub(tmp_path / f"hub{place}") as fresh:
            strike(fresh, folder, KINDS[kind](place))


def kill_at(standing: StandIn, folder: Path, request: int, pause: float, xet: bool) -> None:
    """SIGKILL a pusher so long after its n-th request; main then holds the whole model or nothing."""
    pusher = start_pusher(standing, folder, xet=xet)
    before = len(standing.requests())
    while len(standing.requests()) < before + request and pusher.poll() is None:
        time.sleep(0.002)
    time.sleep(pause)
    with suppress(ProcessLookupError):
        os.killpg(pusher.pid, signal.SIGKILL)
    pusher.communicate(timeout=30)
    commits = main_commits(standing)
    assert len(commits) <= 1
    assert all(holds(commit, folder) for commit in commits)


def test_a_publisher_killed_three_times(standing: StandIn, folder: Path) -> None:
    for request in (6, 9, 15):
        kill_at(standing, folder, request, 0.0, xet=False)
    publish(standing, folder)
    (commit,) = main_commits(standing)
    assert holds(commit, folder)


@pytest.mark.long
@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_a_publisher_killed_at_twenty_random_moments(
    xet: bool, standing: StandIn, folder: Path, tmp_path: Path
) -> None:
    draw, made, last = random.Random(11), 0, len(steps(standing, folder))
    for attempt in range(20):
        with hub(tmp_path / f"hub{attempt}") as fresh:
            kill_at(fresh, folder, draw.randint(1, last), draw.uniform(0.0, 0.05), xet)
            made += len(main_commits(fresh))
            publish(fresh, folder)
            (commit,) = main_commits(fresh)
            assert holds(commit, folder)
    assert 0 < made < 20, "the kills came all before or all after the commit"
