import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from glue.evaluation.language_model import ResidentModel
from glue.evaluation.sandbox import check_sandbox
from glue.evaluation.scorer import Scorer
from glue.evaluation.suite import Suite, load_suite
from glue.specs.errors import EvaluationError
from glue.specs.suite import SuiteSpec
from tests.support.models import char_tokenizer, tiny_llama
from tests.support.suites import write_task

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")
ITEMS = [
    {"prompt": "def add(a, b):\n", "test": "assert add(1, 2) == 3"},
    {"prompt": "def twice(a):\n", "test": "assert twice(4) == 8"},
    {"prompt": "def leave():\n", "test": "leave()"},
]
PYTHON = {"language": "python", "program": "{{prompt}}{{answer}}\n{{test}}"}


def code_suite(folder: Path, items: Sequence[dict[str, str]] = ITEMS, **config: Any) -> Suite:
    base: dict[str, Any] = {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{test}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 40},
        "code": PYTHON,
    }
    write_task(folder, "code", items, **base | config)
    return load_suite(SuiteSpec.parse({"include_path": str(folder), "tasks": [{"task": "code"}]}))


def values(suite: Suite, answers: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[float, ...]:
    """What a model that writes these answers scores."""
    monkeypatch.setattr(ResidentModel, "generate_until", lambda self, requests: list(answers))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(folder))
    task = Scorer(suite, "cpu").score(model, char_tokenizer()).tasks[0]
    assert task.metric == "pass_at_1"
    return task.values


@needs_bubblewrap
def test_programs_that_pass_their_test_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = code_suite(tmp_path / "tasks")
    answers = ["    return a + b", "    return a * a", "    import os; os._exit(0)"]
    assert values(suite, answers, tmp_path / "model", monkeypatch) == (1.0, 0.0, 0.0)


@needs_bubblewrap
@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_javascript_counts_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"prompt": "const add = (a, b) => ", "test": "if (add(1, 2) !== 3) throw new Error()"}] * 2
    suite = code_suite(tmp_path / "tasks", items, code=PYTHON | {"language": "javascript"})
    assert values(suite, ["a + b;", "a - b;"], tmp_path / "model", monkeypatch) == (1.0, 0.0)


@needs_bubblewrap
def test_how_programs_are_judged_is_part_of_the_suite(tmp_path: Path) -> None:
    first, other = (code_suite(tmp_path / str(n), code=PYTHON | {"seconds": n}) for n in (1, 2))
    assert first.digest != other.digest


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"metric_list": [{"metric": "exact_match"}]}, "pass_at_1"),
        ({"code": PYTHON | {"language": "perl"}}, "language"),
        ({"code": PYTHON | {"seconds": 1000}}, "seconds"),
        ({"code": PYTHON | {"network": True}}, "network"),
    ],
)
def test_a_code_task_says_only_what_is_understood(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        code_suite(tmp_path, **config)
    assert words in caught.value.detail + "".join(problem.pointer for problem in caught.value.problems)


def test_without_a_sandbox_a_code_task_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_sandbox.cache_clear()
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(EvaluationError, match="install bubblewrap"):
        code_suite(tmp_path)
