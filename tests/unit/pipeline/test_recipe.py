"""The whole recipe in one process, on a tiny zoo of random models: what every stage must leave behind."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from glue.checkpoints.manifest import read_manifest, verify_manifest
from glue.checkpoints.reader import Checkpoint
from glue.mixture.load import load_model
from glue.pipeline.context import Context
from glue.pipeline.registry import run as run_unit
from glue.specs.errors import EvaluationError, IncompatibleModelsError, InvalidInputError
from glue.specs.expression import Member, Merge, parse_expression
from glue.specs.job import WarmStart
from glue.specs.plan import ADVANCE, UnitRequest
from tests.support.in_process import InProcess
from tests.support.models import tiny_llama
from tests.support.tiny_zoo import build_tiny_zoo, job_spec


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def finished(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> InProcess:
    run = InProcess(job_spec(zoo), tmp_path_factory.mktemp("home"))
    run.run()
    return run


def artifact(run: InProcess) -> Path:
    folder = run.home / "artifacts" / run.outcome("report")["location"]
    assert folder.is_dir()
    return folder


def report(run: InProcess) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((artifact(run) / "report.json").read_text())
    return content


def test_siblings_form_a_family_and_nobody_is_dropped(finished: InProcess) -> None:
    families = finished.outcome("similarity")["families"]
    assert [family["members"] for family in families] == [["ant", "bee"], ["cat"], ["dog"]]


def test_no_family_ends_below_its_best_single_model(finished: InProcess) -> None:
    singles = {scored["name"]: scored["score"]["mean"] for scored in finished.outcome("baselines")["scores"]}
    for family in finished.outcome("similarity")["families"]:
        winner = finished.outcome("search", family["name"])["winner"]
        assert winner["score"]["mean"] >= max(singles[name] for name in family["members"])


def test_a_lone_member_stays_bit_for_bit(finished: InProcess, zoo: Path) -> None:
    merged = finished.outcome("merge", "family-3")
    assert parse_expression(merged["expression"]) == Member(name="dog")
    with (
        Checkpoint.open(finished.home / "artifacts" / merged["location"]) as saved,
        Checkpoint.open(zoo / "models/dog") as dog,
    ):
        assert saved.tensors.keys() == dog.tensors.keys()
        assert all(torch.equal(saved.read(name), dog.read(name)) for name in dog.tensors)


def test_the_saved_merge_scores_what_the_search_scored(finished: InProcess, zoo: Path) -> None:
    """The search's resident model and the saved folder are the same weights: the same logits, to the last bit."""
    merged = finished.outcome("merge", "family-1")
    expression = parse_expression(merged["expression"])
    assert isinstance(expression, Merge)
    saved = load_model(finished.home / "artifacts" / merged["location"], torch.float32, "cpu")
    weights = [part.parameters["weight"] for part in expression.inputs]
    members = [load_model(zoo / "models" / part.model.name, torch.float32, "cpu") for part in expression.inputs]
    for name, tensor in saved.state_dict().items():
        parts = [weight * member.state_dict()[name] for weight, member in zip(weights, members, strict=True)]
        assert torch.allclose(tensor, sum(parts[1:], parts[0]) / sum(weights), atol=1e-6)


def test_the_artifact_is_whole_and_names_nothing_of_the_run(finished: InProcess, zoo: Path) -> None:
    folder = artifact(finished)
    verify_manifest(folder, read_manifest(folder))
    assert {"README.md", "report.json", "config.json", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert {path.name for path in (folder / "plots").iterdir()} == {"similarity.png", "search.png", "models.png"}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(zoo).encode() not in content, path
            assert b"job_in_process" not in content, path


def test_the_report_compares_everything_on_unseen_items(finished: InProcess) -> None:
    found = report(finished)
    assert [row["name"] for row in found["models"]] == ["ant", "bee", "cat", "dog", "merge of ant + bee", "mixture"]
    assert found["artifact"] == "mixture"
    members = {row["name"]: row["report"]["mean"] for row in found["models"] if row["role"] == "member"}
    assert members[found["best_single"]] == max(members.values())
    mixture = found["models"][-1]["report"]["mean"]
    assert found["gain_over_best_single"] == pytest.approx(100 * (mixture - max(members.values())), abs=1e-3)
    assert found["gain_over_best_single_stderr"] > 0
    assert [task["items"] for task in found["models"][0]["report"]["tasks"]] == [24, 4]


def test_the_recommendation_is_made_on_the_proxy(finished: InProcess) -> None:
    found = report(finished)
    proxies = {row["name"]: row["proxy"]["mean"] for row in found["models"]}
    assert proxies[found["recommended"]] == max(proxies.values())
    warned = any("which this artifact holds" in warning for warning in found["warnings"])
    assert warned == (found["recommended"] != "mixture")


def test_the_mixture_answers_as_the_expert_that_it_chooses(finished: InProcess) -> None:
    mixture = load_model(artifact(finished), torch.float32, "cpu")
    experts = finished.outcome("mixture")["experts"]
    folders = [finished.outcome("merge", expert["family"])["location"] for expert in experts]
    prompt = torch.tensor([[5, 9, 17, 33]])
    chosen = int(mixture.route(prompt).argmax())
    expert = load_model(finished.home / "artifacts" / folders[chosen], torch.float32, "cpu")
    with torch.no_grad():
        assert torch.equal(mixture(prompt).logits, expert(prompt).logits)


def test_the_same_spec_gives_the_same_digest(finished: InProcess, zoo: Path, tmp_path: Path) -> None:
    again = InProcess(job_spec(zoo), tmp_path)
    assert again.run()["digest"] == finished.outcome("report")["digest"]


def test_prompts_of_every_family_make_the_prototypes(zoo: Path, tmp_path: Path) -> None:
    spec = job_spec(zoo)
    members = [member.as_json() | {"prompts": [f"{member.name}: "]} for member in spec.zoo.members]
    with_prompts = spec.model_copy(update={"zoo": spec.zoo.parse(spec.zoo.as_json() | {"members": members})})
    run = InProcess(with_prompts, tmp_path)
    run.run()
    mixture = run.outcome("mixture")
    assert mixture["prototypes"] == "prompts"
    assert [expert["support"] for expert in mixture["experts"]] == [2, 1, 1]


def test_one_family_gives_its_merge_as_a_stock_model(zoo: Path, tmp_path: Path) -> None:
    spec = job_spec(zoo, clustering={"threshold": -1.0})
    keep = ("ant", "bee")
    small = spec.zoo.parse(spec.zoo.as_json() | {"members": [m.as_json() for m in spec.zoo.members if m.name in keep]})
    models = tuple(model for model in spec.models if model.name in (*keep, "base"))
    run = InProcess(spec.model_copy(update={"zoo": small, "models": models}), tmp_path)
    run.run()
    assert run.outcome("mixture")["location"] is None
    assert report(run)["artifact"] in ("ant", "merge of ant + bee", "bee")
    model = AutoModelForCausalLM.from_pretrained(artifact(run))
    assert type(model).__name__ == "LlamaForCausalLM"


def test_rejected_members_become_experts_only_on_request(zoo: Path, tmp_path: Path) -> None:
    clustering = {"threshold": 0.5}
    run = InProcess(job_spec(zoo, clustering=clustering, mixture={"minimum_share": 0.0}), tmp_path / "without")
    run.run()
    rejected = [item["name"] for item in run.outcome("search", "family-1")["rejected"]]
    assert rejected
    assert not {expert["name"] for expert in run.outcome("mixture")["experts"]} & set(rejected)
    asked = {"minimum_share": 0.0, "include_rejected": True}
    run = InProcess(job_spec(zoo, clustering=clustering, mixture=asked), tmp_path / "with")
    run.run()
    mixture = run.outcome("mixture")
    known = {item["name"] for item in (*mixture["experts"], *mixture["left_out"])}
    assert set(rejected) <= known


def test_a_model_that_changed_since_submission_is_told(zoo: Path, tmp_path: Path) -> None:
    own = build_tiny_zoo(tmp_path / "zoo")
    spec = job_spec(own)
    tiny_llama(own / "models" / "cat", seed=99, rope_theta=5.0)
    with pytest.raises(InvalidInputError, match="changed since the job was submitted"):
        InProcess(spec, tmp_path / "home").run()


def test_a_config_that_promises_other_tensors_is_refused(tmp_path: Path) -> None:
    own = build_tiny_zoo(tmp_path / "zoo")
    config = json.loads((own / "models/cat/config.json").read_text())
    (own / "models/cat/config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(IncompatibleModelsError, match="missing"):
        InProcess(job_spec(own), tmp_path / "home").run()


def test_suites_that_share_an_item_are_refused(zoo: Path, tmp_path: Path) -> None:
    own = build_tiny_zoo(tmp_path / "zoo")
    (own / "tasks/choose_report.jsonl").write_bytes((own / "tasks/choose.jsonl").read_bytes())
    with pytest.raises(EvaluationError, match="share 24 items"):
        InProcess(job_spec(own), tmp_path / "home").run()


def test_tasks_that_changed_since_submission_are_told(tmp_path: Path) -> None:
    own = build_tiny_zoo(tmp_path / "zoo")
    spec = job_spec(own)
    with (own / "tasks/choose.jsonl").open("a") as items:
        items.write('{"question": "late:", "answers": ["a", "b", "c", "d"], "right": 1}\n')
    with pytest.raises(InvalidInputError, match="task folder of the proxy suite changed"):
        InProcess(spec, tmp_path / "home").run()


def test_embeddings_padded_to_another_size_are_no_family(tmp_path: Path) -> None:
    own = build_tiny_zoo(tmp_path / "zoo")
    tiny_llama(own / "models/bee", vocab_size=128)
    run = InProcess(job_spec(own), tmp_path / "home")
    run.run()
    assert [family["members"] for family in run.outcome("similarity")["families"]] == [
        ["ant"],
        ["bee"],
        ["cat"],
        ["dog"],
    ]


@pytest.mark.parametrize(
    "search",
    [
        {"strategy": "heuristic_average"},
        {"strategy": "heuristic_similarity", "order": "lowest", "coefficients": [0.5]},
        {"strategy": "greedy_soup"},
        {"strategy": "uniform_soup"},
        {"strategy": "grid", "steps": 2},
        {"strategy": "random", "methods": ["dare_ties"], "budget": {"trials": 3}},
        {"strategy": "evolutionary", "methods": ["linear", "ties"], "layer_groups": 2, "budget": {"trials": 8}},
        {"strategy": "evolutionary", "start": "heuristic", "coefficients": [0.5], "budget": {"trials": 4}},
    ],
    ids=lambda search: f"{search['strategy']}{' from heuristic' if 'start' in search else ''}",
)
def test_every_strategy_runs_to_a_model_that_is_built_as_it_was_scored(
    search: dict[str, Any], zoo: Path, tmp_path: Path
) -> None:
    run = InProcess(job_spec(zoo, search=search, clustering={"threshold": 0.5}), tmp_path)
    run.run()
    result = run.outcome("search", "family-1")
    singles = [scored["score"]["mean"] for scored in run.outcome("baselines")["scores"][:3]]
    assert result["winner"]["score"]["mean"] >= max(singles)
    merged = run.outcome("merge", "family-1")
    assert merged["expression"] == result["winner"]["expression"]
    assert report(run)["families"][0]["trials"]


@pytest.mark.parametrize(
    ("search", "warm", "said"),
    [
        ({"strategy": "evolutionary", "budget": {"hours": 1.0}}, False, ["hours"]),
        ({"strategy": "data_flow", "budget": {"hours": 1.0}}, True, ["hours", "another job"]),
        ({"strategy": "uniform_soup"}, True, ["another job"]),
        ({"strategy": "evolutionary", "budget": {"trials": 5}}, False, []),
    ],
)
def test_a_search_says_once_why_the_job_cannot_be_repeated(
    search: dict[str, Any], warm: bool, said: list[str], finished: InProcess, zoo: Path
) -> None:
    earlier = WarmStart.parse({"job": "j", "candidates": [{"name": "a", "expression": Member(name="ant").as_json()}]})
    spec = job_spec(zoo, search=search).model_copy(update={"warm_start": earlier if warm else None}).as_json()
    before = tuple(o for o in finished.outcomes if o.name in ("resolve", "similarity", "baselines"))
    first = UnitRequest("u", "j", "search", "family-1", ADVANCE, 0, -1, 1, "d", spec, {}, before)
    context = Context(finished.home, finished.home, "cpu", lambda fraction, message: None)
    reason = run_unit(first, context).result.get("notes", {}).get("degraded", "")
    assert [word for word in ("hours", "another job") if word in reason] == said
    later = replace(first, advances=({"proposed": []},))
    assert "notes" not in run_unit(later, context).result
