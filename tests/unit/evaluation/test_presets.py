"""The paper's suites over a few items of the data sets' own form."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from glue.evaluation.suite import check_disjoint, load_suite
from glue.specs.errors import EvaluationError, InvalidInputError
from glue.specs.suite import PRESETS, SuiteSpec
from tests.support.suites import write_items

needs_sandbox = pytest.mark.skipif(not shutil.which("bwrap") or not shutil.which("node"), reason="needs a sandbox")


def arc(n: int) -> dict[str, Any]:
    return {"question": f"What is {n}?", "choices": {"label": ["A", "B"], "text": ["it's", "not"]}, "answerKey": "B"}


def gsm(n: int) -> dict[str, Any]:
    return {"question": f"{n}+1?", "answer": f"It is one more.\n#### {n + 1}"}


def mmlu(n: int) -> dict[str, Any]:
    return {"input_formatted": f"Which is {n}?\nA. a\nB. b\nC. c\nD. d\nAnswer:", "answer": n % 4}


def winogrande(n: int) -> dict[str, Any]:
    return {"sentence": f"Ann's hat {n} fits Bo, so _ smiles.", "option1": "Ann", "option2": "Bo", "answer": "2"}


def mbpp(n: int) -> dict[str, Any]:
    tests = [f"assert f({n}) == {n}"] * 3
    return {"text": f"Give {n}.", "code": "def f(x):\n    return x", "test_list": tests, "test_setup_code": ""}


def program(n: int) -> dict[str, Any]:
    return {"prompt": f"def f{n}(x):\n", "test": f"check = {n}", "entry_point": "f"}


FILES = {
    "tiny_arc": (arc, 0, 3),
    "arc": (arc, 3, 3),
    "arc_shots": (arc, 50, 25),
    "tiny_gsm8k": (gsm, 0, 3),
    "gsm8k": (gsm, 3, 3),
    "gsm8k_shots": (gsm, 50, 5),
    "tiny_mmlu": (mmlu, 0, 3),
    "mmlu": (mmlu, 3, 3),
    "tiny_winogrande": (winogrande, 0, 3),
    "winogrande": (winogrande, 3, 3),
    "winogrande_shots": (winogrande, 50, 5),
    "mbpp_validation": (mbpp, 0, 3),
    "mbpp": (mbpp, 3, 3),
    "mbpp_shots": (mbpp, 50, 3),
    "humanevalpack_js": (program, 0, 3),
    "humaneval": (program, 3, 3),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, (make, start, count) in FILES.items():
        write_items(tmp_path / f"{name}.jsonl", [make(n) for n in range(start, start + count)])
    return tmp_path


def spec(name: str, folder: Path, **settings: Any) -> SuiteSpec:
    return SuiteSpec.parse({"suite": name, "include_path": str(folder), **settings})


@needs_sandbox
def test_the_papers_suites_are_built_from_local_data(folder: Path) -> None:
    proxy, report = (load_suite(spec(name, folder)) for name in ("paper_proxy", "paper_report"))
    check_disjoint(proxy, report)
    metrics = [task.metric.name for task in proxy.tasks]
    assert metrics == [task.metric.name for task in report.tasks]
    assert metrics == ["acc", "exact_match", "acc_norm", "acc", "pass_at_1", "pass_at_1"]
    contexts = dict(zip(PRESETS["paper_proxy"], proxy.contexts()[::3], strict=True))
    assert contexts["paper_tiny_arc"].count("Question:") == 26
    assert contexts["paper_tiny_gsm8k"].startswith("Question: 50+1?")
    assert contexts["paper_tiny_winogrande"].endswith("Ann's hat 0 fits Bo, so Ann")
    assert contexts["paper_mbpp_validation"].count("[DONE]") == 3
    assert contexts["paper_mbpp_validation"].endswith("assert f(0) == 0\n[BEGIN]\n")
    assert contexts["paper_humanevalpack_js"] == "def f0(x):\n"


def test_data_that_are_missing_are_told(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"there is no file tiny_mmlu.jsonl; put it into .*not downloaded"):
        load_suite(spec("paper_proxy", tmp_path))


def test_a_presets_tasks_can_be_chosen_and_limited(folder: Path) -> None:
    some = spec("paper_proxy", folder, tasks=[{"task": "paper_tiny_arc", "limit": 2, "weight": 3}])
    assert len(load_suite(some).item_ids) == 2
    assert SuiteSpec.parse(some.as_json()) == some
    with pytest.raises(InvalidInputError, match="paper_proxy has no task mine"):
        spec("paper_proxy", folder, tasks=[{"task": "mine"}])
