"""A job whose suites are lm-eval's own tasks, with their data sets on a stand-in for the Hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glue.plans.model_glue import stages_at_submission
from glue.publishing.provenance import job_of
from glue.references.hub_access import HubAccess
from glue.references.resolve import resolve_job
from glue.specs.expression import Member
from glue.specs.job import JobRequest, JobSpec
from glue.specs.plan import StageOutcome, UnitRequest
from glue.specs.suite import SuiteSpec
from tests.support.data_sets import add_data_set
from tests.support.hub.pushing import go_online
from tests.support.hub.server import StandIn, hub
from tests.support.in_process import InProcess
from tests.support.tiny_zoo import build_tiny_zoo, job_request, zoo_spec
from workers.score_cache import score_key

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
    assert [job.suite_data["proxy"][0].commit for job in jobs] == commits
    # A preset's tasks carry no revision: what is pinned counts even where the suite reads the same.
    other = jobs[0].model_copy(update={"suite_data": jobs[1].suite_data})
    keys = {key(job, "proxy") for job in (*jobs, other)}
    assert len(keys) == 3


def test_what_a_preset_of_the_hub_leaves_out_is_part_of_its_scores_name(tmp_path: Path) -> None:
    zoo = build_tiny_zoo(tmp_path / "zoo")
    plain = resolve_job(JobRequest.parse(job_request(zoo)), zoo_spec(zoo), [zoo], 0)
    preset = SuiteSpec.parse({"suite": "paper_report"})
    proxies = [plain.proxy, plain.proxy.model_copy(update={"seed": 1})]
    jobs = [plain.model_copy(update={"proxy": proxy, "report": preset}) for proxy in proxies]
    assert key(jobs[0], "report") != key(jobs[1], "report")
    local = [job.model_copy(update={"report": plain.report}) for job in jobs]
    assert key(local[0], "report") == key(local[1], "report")


def key(job: JobSpec, suite: str) -> str:
    """The name under which a score of the first member is kept."""
    member = job.zoo.member_names()[0]
    inspected = {
        "name": member,
        "content": "c",
        "signature": "s",
        "tokenizer": "t",
        "architecture": "L",
        "dtype": "F32",
    }
    sizes = {"parameters": 1, "hidden_size": 1, "layers": 1, "vocabulary": 1, "tied": False}
    unit = UnitRequest(
        unit_id="u",
        job_id="j",
        stage="baselines",
        family="",
        kind="score.candidate",
        generation=0,
        position=0,
        token=1,
        digest="d",
        spec=job.as_json(),
        payload={"suite": suite, "name": member, "expression": Member(name=member).as_json()},
        outcomes=(StageOutcome("resolve", "", {"models": [inspected | sizes], "groups": []}),),
    )
    found = score_key(unit, "cpu")
    assert found is not None
    return found
