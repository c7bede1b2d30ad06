"""A job whose suites are lm-eval's own tasks, with their data sets on a stand-in for the Hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glue.plans.model_glue import stages_at_submission
from glue.publishing.provenance import job_of
from glue.references.hub_access import HubAccess
from glue.references.resolve import resolve_job
from glue.specs.job import JobRequest, JobSpec
from tests.support.data_sets import add_data_set
from tests.support.hub.pushing import go_online
from tests.support.hub.server import StandIn, hub
from tests.support.in_process import InProcess
from tests.support.tiny_zoo import build_tiny_zoo, job_request, zoo_spec

REPO = "allenai/ai2_arc"


def arc(n: int) -> dict[str, Any]:
    labels, texts = ["A", "B", "C"], [f"it is {n + k}" for k in range(3)]
    return {"question": f"What is {n}?", "choices": {"label": labels, "text": texts}, "answerKey": labels[n % 3]}


@pytest.fixture
def standing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    go_online(monkeypatch)
    with hub(tmp_path / "hub") as running:
        yield running


def spec(zoo: Path, access: HubAccess, **changes: Any) -> JobSpec:
    request = JobRequest.parse(job_request(zoo, **changes))
    return resolve_job(request, zoo_spec(zoo), [zoo], 0, access)


def test_a_job_fetches_its_data_sets_first_and_scores_on_them(standing: StandIn, tmp_path: Path) -> None:
    zoo = build_tiny_zoo(tmp_path / "zoo")
    commit = add_data_set(standing.store, REPO, tmp_path / "arc", {"test": [arc(n) for n in range(12)]}, "ARC-Easy")
    access = HubAccess(standing.url, tmp_path / "cache")
    job = spec(zoo, access, proxy={"tasks": [{"task": "arc_easy", "limit": 8}]})
    (fetched,) = stages_at_submission(job)[0].units
    assert (fetched.kind, fetched.payload["repo"], fetched.payload["commit"]) == ("resolve.data", REPO, commit)
    # Afterwards nothing else is asked of the Hub, and a newer commit changes nothing.
    add_data_set(standing.store, REPO, tmp_path / "new", {"test": [arc(n) for n in range(50, 60)]}, "ARC-Easy")
    run = InProcess(JobSpec.parse(job.as_json()), tmp_path / "home", hub=access)
    run.run()
    scores = run.outcome("baselines")["scores"]
    assert [task["task"] for task in scores[0]["score"]["tasks"]] == ["arc_easy"]
    assert len(scores[0]["score"]["tasks"][0]["values"]) == 8
    again = job_of(job)["job"]["proxy"]
    assert again["tasks"][0]["revision"] == commit
    assert again["data_sets"] == {REPO: commit}


def test_the_score_of_a_candidate_is_not_shared_between_revisions(standing: StandIn, tmp_path: Path) -> None:
    zoo = build_tiny_zoo(tmp_path / "zoo")
    access = HubAccess(standing.url, tmp_path / "cache")
    for number in range(2):
        items = [arc(n) for n in range(number, 6 + number)]
        add_data_set(standing.store, REPO, tmp_path / f"arc{number}", {"test": items}, "ARC-Easy")
    commits = [commit.oid for commit in standing.store.repository(f"datasets/{REPO}").log()[:2]]
    jobs = [spec(zoo, access, proxy={"tasks": [{"task": "arc_easy", "revision": oid}]}) for oid in commits]
    assert jobs[0].proxy != jobs[1].proxy
    assert [job.suite_data["proxy"][0].commit for job in jobs] == commits
