"""A zoo of two tokenizers in one process: each family is searched in its own, and the mixture answers in both."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from glue.evaluation.scorer import Scorer
from glue.evaluation.suite import load_suite
from glue.mixture.load import load_model
from glue.references.resolve import resolve_job
from glue.specs.job import JobRequest
from glue.specs.results import SuiteScore
from tests.support.in_process import InProcess
from tests.support.models import tiny_pair_neox
from tests.support.tiny_zoo import build_tiny_zoo, job_request, zoo_spec

MEMBERS = ("ant", "bee", "eel", "fox")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> InProcess:
    root = build_tiny_zoo(tmp_path_factory.mktemp("zoo"))
    # Two of the same weights: alike in every way, with a tokenizer unlike the others'.
    for name in ("eel", "fox"):
        tiny_pair_neox(root / "models" / name, seed=5)
    members = [{"name": name, "source": str(root / "models" / name)} for name in MEMBERS]
    request = JobRequest.parse(job_request(root, mixture={"minimum_share": 0.0}))
    spec = resolve_job(request, zoo_spec(root, members=members), [root], seed_default=0)
    run = InProcess(spec, tmp_path_factory.mktemp("home"))
    run.run()
    return run


def test_families_do_not_cross_tokenizers(run: InProcess) -> None:
    families = [set(family["members"]) for family in run.outcome("similarity")["families"]]
    assert families == [{"ant", "bee"}, {"eel", "fox"}]


def test_members_are_scored_in_their_own_tokens(run: InProcess) -> None:
    scorer = Scorer(load_suite(run.spec.proxy), "cpu")
    scores = {each["name"]: SuiteScore.parse(each["score"]) for each in run.outcome("baselines")["scores"]}
    for name in ("ant", "eel"):
        folder = Path(run.spec.paths()[name])
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert scorer.score(load_model(folder, torch.float32, "cpu"), tokenizer) == scores[name]


def test_the_artifact_answers_in_both(run: InProcess) -> None:
    folder = run.home / "artifacts" / run.outcome("report")["location"]
    config = json.loads((folder / "config.json").read_text())
    assert config["expert_tokenizers"] == [None, "tokenizer_1"]
    assert (folder / "tokenizer_1" / "tokenizer.json").is_file()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    given = tokenizer("1+2=", return_tensors="pt")
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    output = model.generate(**given, routing=torch.tensor([[0.0, 1.0]]), **settings)
    own = AutoTokenizer.from_pretrained(run.spec.paths()["eel"])
    alone: Any = AutoModelForCausalLM.from_pretrained(run.spec.paths()["eel"]).eval()
    ids = own("1+2=", return_tensors="pt")
    said = alone.generate(**ids, **settings)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(output[0, 4:], skip_special_tokens=True) == own.decode(said, skip_special_tokens=True)


def test_report_and_card_say_so(run: InProcess) -> None:
    folder = run.home / "artifacts" / run.outcome("report")["location"]
    report = json.loads((folder / "report.json").read_text())
    expert = report["mixture"]["experts"][1]["name"]
    assert any(f"tokenizer of their own: {expert}." in warning for warning in report["warnings"])
    assert f"tokenizer of their own: {expert}." in (folder / "README.md").read_text()
