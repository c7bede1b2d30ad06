"""The chain of a model_glue job: what starts when, whoever asks and however often."""

from typing import Any

import pytest

from glue.plans.model_glue import stage_names, stages_at_submission, stages_unlocked
from glue.specs.expression import Member, linear
from glue.specs.job import JobSpec
from glue.specs.plan import StageOutcome, WorkerClass

MEMBERS = ("a", "b", "c")
SCORE: dict[str, Any] = {"suite": "s", "mean": 0.5, "stderr": 0.1, "tasks": []}


@pytest.fixture
def spec() -> JobSpec:
    zoo = {"name": "zoo", "members": [{"name": name, "source": f"/zoo/{name}"} for name in MEMBERS]}
    suite = {"tasks": [{"task": "t"}]}
    models = [{"name": name, "path": f"/zoo/{name}", "commit": "0"} for name in MEMBERS]
    parts: dict[str, Any] = {"clustering": {"threshold": 0.9}, "search": {}, "mixture": {}, "output": {}}
    return JobSpec.parse(
        {"kind": "model_glue", "seed": 1, "zoo": zoo, "models": models, "proxy": suite, "report": suite} | parts
    )


def inspected(name: str) -> dict[str, Any]:
    text = {"content": "c", "signature": "s", "tokenizer": "t", "architecture": "Llama", "dtype": "F32"}
    numbers = {"parameters": 1000, "hidden_size": 8, "layers": 1, "vocabulary": 10}
    return {"name": name, "tied": False} | text | numbers


def scored(name: str) -> dict[str, Any]:
    return {"name": name, "expression": Member(name=name).as_json(), "score": SCORE}


RESOLVE = StageOutcome("resolve", "", {"models": [inspected(n) for n in MEMBERS], "groups": [["a", "b"], ["c"]]})
FAMILIES = [{"name": "family-1", "members": ["a", "b"]}, {"name": "family-2", "members": ["c"]}]
SIMILARITY = StageOutcome("similarity", "", {"matrices": [], "families": FAMILIES})
BASELINES = StageOutcome("baselines", "", {"scores": [scored(name) for name in MEMBERS]})


def search(family: str, winner: dict[str, Any]) -> StageOutcome:
    return StageOutcome("search", family, {"family": family, "winner": winner, "rejected": [], "trials": []})


def merge(family: str, name: str, expression: dict[str, Any]) -> StageOutcome:
    located = {"digest": "d", "location": f"dd/{name}"}
    return StageOutcome("merge", family, {"family": family, "name": name, "expression": expression} | located)


AB = linear({"a": 0.3, "b": 0.7}).as_json()
SEARCHES = (search("family-1", scored("ab") | {"expression": AB}), search("family-2", scored("c")))
MERGES = (merge("family-1", "merge of a + b", AB), merge("family-2", "c", Member(name="c").as_json()))
MIXTURE = StageOutcome(
    "mixture",
    "",
    {
        "experts": [{"name": n, "family": f, "support": 3} for n, f in (("ab", "family-1"), ("c", "family-2"))],
        "left_out": [],
        "prototypes": "proxy_items",
        "digest": "d",
        "location": "dd/mixture",
        "score": SCORE,
    },
)


def unlocked(spec: JobSpec, *outcomes: StageOutcome) -> list[tuple[str, str, list[str]]]:
    return [(p.name, p.family, [unit.kind for unit in p.units]) for p in stages_unlocked(spec, outcomes)]


def test_submission_starts_resolve_with_a_unit_for_every_entry(spec: JobSpec) -> None:
    plans = stages_at_submission(spec)
    assert [plan.name for plan in plans] == ["resolve", "similarity", "baselines", "mixture", "report"]
    assert [plan.ready for plan in plans] == [True, False, False, False, False]
    assert [unit.payload["name"] for unit in plans[0].units] == ["a", "b", "c"]
    assert all(not plan.units for plan in plans[1:])
    assert stage_names() == ("resolve", "similarity", "baselines", "search", "merge", "mixture", "report")


def test_each_finished_stage_unlocks_the_next(spec: JobSpec) -> None:
    assert unlocked(spec, RESOLVE) == [("similarity", "", ["similarity.compare"])]
    assert unlocked(spec, RESOLVE, SIMILARITY) == [("baselines", "", ["score.candidate"] * 3)]
    assert unlocked(spec, RESOLVE, SIMILARITY, BASELINES) == [
        ("search", "family-1", []),
        ("search", "family-2", []),
    ]


def test_families_go_on_alone_and_the_mixture_waits_for_all(spec: JobSpec) -> None:
    before = (RESOLVE, SIMILARITY, BASELINES, SEARCHES[0])
    assert unlocked(spec, *before) == [("search", "family-2", []), ("merge", "family-1", ["merge.build"])]
    assert unlocked(spec, *before, MERGES[0], SEARCHES[1]) == [("merge", "family-2", ["merge.build"])]
    assert unlocked(spec, RESOLVE, SIMILARITY, BASELINES, *SEARCHES, *MERGES) == [("mixture", "", [])]


def test_the_report_scores_every_member_every_real_merge_and_the_mixture(spec: JobSpec) -> None:
    (plan,) = stages_unlocked(spec, (RESOLVE, SIMILARITY, BASELINES, *SEARCHES, *MERGES, MIXTURE))
    assert [unit.payload.get("name", "mixture") for unit in plan.units] == ["a", "b", "c", "merge of a + b", "mixture"]
    assert {unit.payload["suite"] for unit in plan.units} == {"report"}
    assert {unit.worker_class for unit in plan.units} == {WorkerClass.GPU}
    assert [unit.gpu_memory_bytes for unit in plan.units] == [8000] * 4 + [16000]


def test_nothing_is_left_when_all_have_finished(spec: JobSpec) -> None:
    report = StageOutcome("report", "", {})
    done = (RESOLVE, SIMILARITY, BASELINES, *SEARCHES, *MERGES, MIXTURE, report)
    assert unlocked(spec, *done) == []


def test_asking_twice_gives_the_same_plans(spec: JobSpec) -> None:
    outcomes = (RESOLVE, SIMILARITY, BASELINES, SEARCHES[0])
    assert stages_unlocked(spec, outcomes) == stages_unlocked(spec, list(reversed(outcomes)))
