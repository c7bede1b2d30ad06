"""A score that its owner has had is not computed again, and everything that it depends on is in its key."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session

from glue.records.jobs import list_units
from glue.records.leases import Claim
from glue.records.tables import Score
from glue.specs.expression import linear
from glue.specs.plan import StageOutcome, UnitOutcome, UnitRequest
from tests.support.fake_pipeline import MEMBER
from tests.support.service import Jobs, Processes, job_spec
from workers.score_cache import keep_score, score_key

EXPRESSION = linear({MEMBER: 0.5, "b": 0.5}).as_json()
SPEC = job_spec().as_json()


def resolved(**contents: str) -> StageOutcome:
    facts = {
        "signature": "s",
        "tokenizer": "t",
        "architecture": "A",
        "dtype": "float32",
        "parameters": 1,
        "hidden_size": 1,
        "layers": 1,
        "vocabulary": 1,
        "tied": False,
    }
    models = [{"name": name, "content": content, **facts} for name, content in contents.items()]
    return StageOutcome("resolve", "", {"models": models, "groups": []})


def scoring(**changes: Any) -> UnitRequest:
    payload = {"name": "half", "expression": EXPRESSION, "suite": "proxy"}
    request = UnitRequest("unit_1", "job_1", "search", "f", "score.candidate", 0, 0, 1, "d", SPEC, payload)
    return replace(request, outcomes=(resolved(a="1" * 64, b="2" * 64),), **changes)


def changed_spec(**proxy: Any) -> dict[str, Any]:
    return {**SPEC, "proxy": {**SPEC["proxy"], **proxy}}


def test_the_key_knows_weights_and_not_names() -> None:
    renamed = linear({"x": 0.5, "y": 0.5}).as_json()
    payload = {"name": "other", "expression": renamed, "suite": "proxy"}
    same = replace(scoring(payload=payload), outcomes=(resolved(x="1" * 64, y="2" * 64),), job_id="job_2", token=9)
    assert score_key(same, "cpu") == score_key(scoring(), "cpu")


@pytest.mark.parametrize(
    "other",
    [
        scoring(spec=changed_spec(batch=16)),
        scoring(spec=changed_spec(threads=2)),
        scoring(spec=changed_spec(dtype="bfloat16")),
        scoring(spec=changed_spec(seed=1)),
        scoring(spec=changed_spec(tasks=[{"task": "none", "limit": 3}])),
        scoring(spec={**SPEC, "suite_commits": {"proxy": "c"}}),
        scoring(
            payload={"name": "half", "expression": linear({"a": 0.4, "b": 0.6}).as_json(), "suite": "proxy"},
        ),
        replace(scoring(), outcomes=(resolved(a="1" * 64, b="3" * 64),)),
    ],
)
def test_whatever_decides_a_score_changes_the_key(other: UnitRequest) -> None:
    assert score_key(other, "cpu") != score_key(scoring(), "cpu")


def test_the_device_changes_the_key_and_where_tasks_lie_does_not() -> None:
    assert score_key(scoring(), "cuda") != score_key(scoring(), "cpu")
    assert score_key(scoring(spec=changed_spec(include_path="/moved")), "cpu") == score_key(scoring(), "cpu")


def test_other_units_have_no_key() -> None:
    assert score_key(scoring(kind="merge.build"), "cpu") is None
    assert score_key(replace(scoring(), outcomes=()), "cpu") is None


def test_a_score_that_was_made_otherwise_than_the_suite_says_is_not_kept() -> None:
    """Another job would take it for the suite's own, and not be told."""
    claim = Claim(scoring(), "ann", 1)
    plain = UnitOutcome({"score": {"mean": 0.5}})
    degraded = UnitOutcome(plain.result | {"notes": {"degraded": "batch halved to 16"}})
    with Session() as without_database:
        keep_score(without_database, claim, degraded, "cpu")
        with pytest.raises(UnboundExecutionError):
            keep_score(without_database, claim, plain, "cpu")


def test_a_second_job_takes_the_scores_of_the_first(alone: Processes, jobs: Jobs) -> None:
    alone.slot()
    first, second = jobs.submit({}), jobs.submit({})
    jobs.wait_for_status(first, "succeeded")
    jobs.wait_for_status(second, "succeeded")
    assert _cache(jobs, first) == [None]
    assert _cache(jobs, second) == ["hit"]
    with jobs.database.transaction() as session:
        # One for the proxy suite; the report suite is equal, so it is the same score.
        assert session.scalar(select(func.count()).select_from(Score)) == 1


def test_owners_do_not_share_scores(alone: Processes, jobs: Jobs) -> None:
    alone.slot()
    mine, theirs = jobs.submit({}), jobs.submit({}, owner="somebody else")
    jobs.wait_for_status(mine, "succeeded")
    jobs.wait_for_status(theirs, "succeeded")
    assert _cache(jobs, theirs) == [None]


def _cache(jobs: Jobs, job_id: str) -> list[Any]:
    with jobs.database.transaction() as session:
        units = list_units(session, job_id, stage="baselines", limit=10)
    return [(unit.summary or {}).get("cache") for unit in units if unit.kind == "score.candidate"]
