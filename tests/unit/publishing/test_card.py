"""The card: metadata that the Hub takes, evidence, inputs, and nothing of the machine it was made on."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from glue.publishing.card import model_card
from glue.publishing.report import Evidence, build_report
from glue.specs.job import JobSpec
from glue.specs.results import (
    BaselinesResult,
    Expert,
    MergeResult,
    MixtureResult,
    ResolveResult,
    ScoredCandidate,
    SearchResult,
    SimilarityResult,
    SuiteScore,
)
from tests.support.hub.metadata import metadata_errors

LICENCES = {"base": "llama2", "ant": "llama2", "bee": "apache-2.0"}


def score(mean: float) -> SuiteScore:
    values = tuple(float(n < 20 * mean) for n in range(20))
    task = {"task": "choose", "metric": "acc", "weight": 1.0, "mean": mean, "stderr": 0.1, "values": values}
    return SuiteScore.parse({"suite": "ab" * 32, "mean": mean, "stderr": 0.1, "tasks": [task]})


def linear() -> dict[str, Any]:
    leaves = [{"model": {"node": "member", "name": name}, "parameters": {"weight": 0.5}} for name in ("ant", "bee")]
    return {"node": "merge", "method": "linear", "inputs": leaves}


def job(**changes: Any) -> JobSpec:
    models = [
        {"name": name, "path": f"/secret/place/{name}", "commit": name * 10, "repo": f"org/{name}", "licence": licence}
        for name, licence in LICENCES.items()
    ]
    suite = {"include_path": "/secret/place/tasks", "tasks": [{"task": "choose"}]}
    members = [{"name": name, "source": f"org/{name}"} for name in ("ant", "bee")]
    zoo = {"name": "tiny", "base": {"source": "org/base"}, "members": members}
    spec = {
        "kind": "model_glue", "seed": 7, "zoo": zoo, "models": models, "clustering": {},
        "search": {"strategy": "heuristic_coefficient"}, "mixture": {}, "output": {}, "proxy": suite,
        "report": suite, "suite_commits": {"proxy": "c1", "report": "c2"},
    }  # fmt: skip
    return JobSpec.parse(spec | changes)


def report_of(spec: JobSpec, mixed: bool) -> dict[str, Any]:
    inspected = [
        {
            "name": name, "content": "0" * 64, "signature": "s", "tokenizer": "t", "architecture": "LlamaForCausalLM",
            "dtype": "F32", "parameters": 12345, "hidden_size": 16, "layers": 2, "vocabulary": 99, "tied": True,
        }
        for name in LICENCES
    ]  # fmt: skip
    family = {"name": "family-1", "members": ["ant", "bee"]}
    winner = ScoredCandidate.parse({"name": "ant + bee", "expression": linear(), "score": score(0.8).as_json()})
    singles = [
        {"name": name, "expression": {"node": "member", "name": name}, "score": score(0.6).as_json()}
        for name in ("ant", "bee")
    ]
    expert = Expert(name="merge of ant + bee", family="family-1", support=9)
    mixture = {
        "experts": [expert.as_json()] * 2 if mixed else [], "left_out": [], "prototypes": "proxy_items",
        "digest": "d" if mixed else None, "location": "l" if mixed else None,
        "score": score(0.85).as_json() if mixed else None,
    }  # fmt: skip
    merged = MergeResult(
        family="family-1", name="merge of ant + bee", expression=winner.expression, digest="d", location="l"
    )
    return build_report(
        Evidence(
            job=spec,
            resolved=ResolveResult.parse({"models": inspected, "groups": [["ant", "bee"]]}),
            similarity=SimilarityResult.parse(
                {"matrices": [{"members": ["ant", "bee"], "values": [[1, 0.9], [0.9, 1]]}], "families": [family]}
            ),
            baselines=BaselinesResult.parse({"scores": singles}),
            searches=(SearchResult(family="family-1", winner=winner, rejected=(), trials=()),),
            merges=(merged,),
            mixture=MixtureResult.parse(mixture),
            report_scores={
                "ant": score(0.55),
                "bee": score(0.5),
                "merge of ant + bee": score(0.75),
                "mixture": score(0.8),
            },
            versions={"torch": "2"},
        )
    )


def metadata_of(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("mixed", [False, True])
def test_the_hub_takes_the_metadata(mixed: bool) -> None:
    card = model_card(report_of(job(), mixed))
    assert metadata_errors(card) == []
    found = metadata_of(card)
    assert found["base_model"] == ["org/base", "org/ant", "org/bee"]
    assert found["base_model_relation"] == "merge"
    assert found["license"] == "llama2"
    assert {"model-glue", "merge"} <= set(found["tags"])
    (model,) = found["model-index"]
    assert model["results"][0]["metrics"][0] == {"type": "acc", "name": "acc", "value": 80.0 if mixed else 75.0}


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        ((None, None, None), None),
        (("mit", "mit", "mit"), "mit"),
        (("mit", "apache-2.0", "mit"), "apache-2.0"),
        (("mit", None, "mit"), "other"),
        (("my-terms", "my-terms", "my-terms"), "other"),
    ],
)
def test_the_licence_is_one_that_the_hub_knows(licences: tuple[str | None, ...], expected: str | None) -> None:
    models = [model.as_json() | {"licence": licence} for model, licence in zip(job().models, licences, strict=True)]
    card = model_card(report_of(job(models=models), mixed=False))
    assert metadata_errors(card) == []
    assert metadata_of(card).get("license") == expected


def test_a_chosen_licence_is_said_to_be_chosen() -> None:
    card = model_card(report_of(job(publish={"repo": "me/model", "licence": "cc-by-nc-4.0"}), mixed=False))
    assert metadata_of(card)["license"] == "cc-by-nc-4.0"
    assert "chosen by whoever published" in card


def test_a_published_model_is_named_where_it_is_loaded() -> None:
    card = model_card(report_of(job(publish={"repo": "me/model"}), mixed=True))
    assert 'from_pretrained("me/model", trust_remote_code=True)' in card
    assert metadata_of(card)["model-index"][0]["name"] == "model"


def test_evidence_inputs_and_recipe_are_there() -> None:
    card = model_card(report_of(job(), mixed=False))
    assert re.search(r"\*\*merge of ant \+ bee\*\* \| merge \| 75.0 ± 10.0 \| 75.0 ± 10.0 \| \+20.00 ±", card)
    assert "[org/ant](https://huggingface.co/org/ant) | `antantantant` | llama2" in card
    assert "merge_method: linear" in card
    assert "source: org/ant@antant" in card
    for picture in ("models", "similarity", "search"):
        assert f"plots/{picture}.png" in card


def test_the_recipe_is_yaml_without_a_place_of_this_machine() -> None:
    report = report_of(job(), mixed=True)
    card = model_card(report)
    assert "/secret/place" not in card
    assert "/secret/place" not in str(report)
    for block in re.findall(r"```yaml\n(.*?)```", card, re.DOTALL):
        assert isinstance(yaml.safe_load(block), dict)


def test_the_same_report_gives_the_same_card(tmp_path: Path) -> None:
    assert model_card(report_of(job(), True)) == model_card(report_of(job(), True))
