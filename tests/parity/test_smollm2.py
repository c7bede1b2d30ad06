"""SmolLM2-135M scored by us and by `lm_eval.simple_evaluate`; runs where `SMOLLM2` names a folder with the model."""

import os
from pathlib import Path
from random import Random
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from glue.evaluation.scorer import Scorer
from glue.evaluation.suite import load_suite
from glue.specs.suite import SuiteSpec
from tests.support.suites import write_items, write_task

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("SMOLLM2" not in os.environ, reason="SMOLLM2 names no folder with SmolLM2-135M"),
]

FACTS = [
    ("The capital of France is", ["Paris", "London on the Thames", "a cold winter", "Rome"]),
    ("Water boils when it becomes", ["hot enough", "blue", "a small stone", "quiet"]),
    ("A dog is a kind of", ["animal", "musical instrument", "long river", "number"]),
    ("Bread is made of", ["flour and water", "glass", "iron and coal", "old songs"]),
    ("The sun rises in the", ["east", "middle of the ocean floor", "kitchen", "book"]),
    ("Two and two make", ["four", "a hundred", "some green paint", "Monday"]),
]
METRICS = {"facts": "acc", "fair": "acc_norm", "texts": "byte_perplexity", "writing": "exact_match"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("tasks"), Random(0)
    items = [
        {"q": question, "answers": (mixed := random.sample(answers, 4)), "right": mixed.index(answers[0])}
        for question, answers in FACTS
    ]
    choice = {"output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "answers"}
    for name in ("facts", "fair"):
        files = {"test": str(folder / f"{name}.jsonl"), "train": str(write_items(folder / "shots.jsonl", items))}
        shots = {"num_fewshot": 3, "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
        metric = [{"metric": METRICS[name], "aggregation": "mean", "higher_is_better": True}]
        data = {"dataset_kwargs": {"data_files": files}}
        write_task(folder, name, items, doc_to_target="right", metric_list=metric, **choice, **shots, **data)
    texts = [{"text": f"{question} {answers[0]}."} for question, answers in FACTS]
    write_task(folder, "texts", texts, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}")
    written = [{"q": f"Question: {n} + 1 = ?\nAnswer:", "a": str(n + 1)} for n in range(6)]
    settings = {"doc_to_text": "{{q}}", "doc_to_target": "{{a}}", "output_type": "generate_until"}
    stop = {"until": ["\n", "Question"], "max_gen_toks": 8}
    exact = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    write_task(folder, "writing", written, generation_kwargs=stop, metric_list=exact, **settings)
    return folder


def test_scores_are_lm_evals(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    source = os.environ["SMOLLM2"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    spec = {"include_path": str(folder), "tasks": [{"task": name} for name in METRICS], "batch": 8}
    suite = load_suite(SuiteSpec.parse(spec))
    score = Scorer(suite, "cpu").score(model, tokenizer)
    theirs: Any = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
        tasks=list(METRICS),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        fewshot_random_seed=0,
        bootstrap_iters=1,
    )
    for task, ours in zip(suite.tasks, score.tasks, strict=True):
        samples = theirs["samples"][ours.task]
        for item, sample in zip(task.items, samples, strict=True):
            for request, (answer,) in zip(item.requests, sample["resps"], strict=True):
                if isinstance(answer, tuple):
                    assert request.resps[0] == (pytest.approx(answer[0], abs=1e-3), answer[1])
                elif isinstance(answer, float):
                    assert request.resps[0] == pytest.approx(answer, abs=1e-3)
                else:
                    assert request.resps[0] == answer
        if ours.task != "texts":
            assert list(ours.values) == [sample[METRICS[ours.task]] for sample in samples]
