"""The paper's suites with their data sets from a stand-in for the Hub, in the data sets' own form."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from glue.evaluation.scorer import Scorer
from glue.evaluation.suite import Suite, check_disjoint, load_suite
from glue.references.findings import Findings
from glue.references.hub_access import HubAccess
from glue.references.hub_datasets import DataSets, download_data
from glue.references.installed_tasks import installed_tasks
from glue.references.tasks import FoundSuite, find_tasks
from glue.specs.errors import EvaluationError
from glue.specs.suite import PRESETS, SuiteSpec
from tests.support.data_sets import add_data_set, write_card, write_lines
from tests.support.hub.pushing import go_online
from tests.support.hub.server import StandIn, hub
from tests.support.models import char_tokenizer, tiny_llama

needs_sandbox = pytest.mark.skipif(not shutil.which("bwrap") or not shutil.which("node"), reason="needs a sandbox")
LETTERS = ["A", "B", "C", "D"]
SUBJECTS = ("anatomy", "virology")


def arc(n: int) -> dict[str, Any]:
    texts = [f"it is {n + k}" for k in range(4)]
    return {"id": str(n), "question": f"What is {n}?", "choices": {"label": LETTERS, "text": texts}, "answerKey": "B"}


def gsm(n: int) -> dict[str, Any]:
    return {"question": f"{n} and one?", "answer": f"It is one more.\n#### {n + 1}"}


def mmlu(n: int) -> dict[str, Any]:
    return {"question": f"Which one, {n}?", "subject": "anatomy", "choices": ["a", "bb", "ccc", "d"], "answer": n % 4}


def tiny_mmlu(n: int) -> dict[str, Any]:
    return mmlu(n) | {
        "input_formatted": f"Questions about anatomy.\n\nWhich one, {n}?\nA. a\nB. bb\nC. ccc\nD. d\nAnswer:"
    }


def winogrande(n: int) -> dict[str, Any]:
    return {"sentence": f"Ann's hat {n} fits Bo, so _ smiles.", "option1": "Ann", "option2": "Bo", "answer": "2"}


def mbpp(n: int) -> dict[str, Any]:
    tests = [f"assert f({n}) == {n}"] * 3
    return {
        "task_id": n,
        "text": f"Give {n}.",
        "code": "def f(x):\n  return x",
        "test_list": tests,
        "test_setup_code": "",
    }


def javascript(n: int) -> dict[str, Any]:
    return {"task_id": f"JavaScript/{n}", "prompt": f"const f{n} = (x) => {{\n", "test": f"console.assert(f{n}(1))"}


def python(n: int) -> dict[str, Any]:
    return {"prompt": f"def f{n}(x):\n", "test": "def check(f):\n    assert f(1)", "entry_point": f"f{n}"}


def rows(make: Any, first: int, count: int) -> list[dict[str, Any]]:
    return [make(n) for n in range(first, first + count)]


# As on the Hub, the tiny sets are parts of the whole ones.
SETS: dict[str, tuple[str, dict[str, list[dict[str, Any]]]]] = {
    "tinyBenchmarks/tinyAI2_arc": ("ARC-Challenge", {"test": rows(arc, 0, 3), "train": rows(arc, 90, 2)}),
    "allenai/ai2_arc": ("ARC-Challenge", {"test": rows(arc, 0, 6), "train": rows(arc, 50, 25)}),
    "tinyBenchmarks/tinyMMLU": ("all", {"test": rows(tiny_mmlu, 0, 3), "dev": rows(tiny_mmlu, 90, 2)}),
    "tinyBenchmarks/tinyGSM8k": ("main", {"test": rows(gsm, 0, 3), "train": rows(gsm, 90, 2)}),
    "openai/gsm8k": ("main", {"test": rows(gsm, 0, 6), "train": rows(gsm, 50, 6)}),
    "tinyBenchmarks/tinyWinogrande": ("winogrande_xl", {"validation": rows(winogrande, 0, 3)}),
    "allenai/winogrande": ("winogrande_xl", {"validation": rows(winogrande, 0, 6), "train": rows(winogrande, 50, 6)}),
    "google-research-datasets/mbpp": (
        "full",
        {"prompt": rows(mbpp, 50, 3), "validation": rows(mbpp, 0, 3), "test": rows(mbpp, 20, 3)},
    ),
    "openai/openai_humaneval": ("openai_humaneval", {"test": rows(python, 0, 3)}),
}


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubAccess]:
    root = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch, hub(root / "hub") as standing:
        go_online(patch)
        for repo, (name, splits) in SETS.items():
            add_data_set(standing.store, repo, root / repo, splits, name)
        _add_javascript(standing, root / "javascript")
        _add_mmlu(standing, root / "mmlu")
        yield HubAccess(standing.url, root / "cache")


def _add_javascript(standing: StandIn, folder: Path) -> None:
    write_lines(folder / "data" / "js" / "data" / "humanevalpack.jsonl", rows(javascript, 0, 3))
    write_lines(folder / "data" / "python" / "data" / "humanevalpack.jsonl", rows(python, 0, 3))
    (folder / "humanevalpack.py").write_text("raise SystemExit('scripts never run')\n")
    standing.store.add_folder("datasets/bigcode/humanevalpack", folder)


def _add_mmlu(standing: StandIn, folder: Path) -> None:
    tasks = installed_tasks()
    assert tasks is not None
    subjects = [tasks.read(task)["dataset_name"] for task, _ in tasks.expand("mmlu")]
    files = [[{"split": split, "path": f"{name}/{split}.jsonl"} for split in ("test", "dev")] for name in subjects]
    write_card(folder, [{"config_name": name, "data_files": each} for name, each in zip(subjects, files, strict=True)])
    for number, name in enumerate(subjects):
        first = 0 if name == "anatomy" else 100 * (number + 1)
        write_lines(folder / name / "test.jsonl", rows(mmlu, first, 6 if name == "anatomy" else 2))
        write_lines(folder / name / "dev.jsonl", rows(mmlu, first + 90, 5))
    standing.store.add_folder("datasets/cais/mmlu", folder)


def found(access: HubAccess, name: str) -> FoundSuite:
    findings = Findings()
    suite = find_tasks(SuiteSpec.parse({"suite": name, "batch": 8}), "/proxy", [], findings, DataSets(access))
    findings.raise_any()
    return suite


def built(access: HubAccess, name: str) -> Suite:
    suite = found(access, name)
    for each in suite.data:
        paths = [path for paths in each.splits.values() for path in paths]
        download_data(each.repo, each.commit, paths, access, lambda *_: None)
    return load_suite(suite.spec, char_tokenizer(), suite.data)


@needs_sandbox
def test_both_suites_are_complete_and_the_report_lacks_the_proxys_items(access: HubAccess, tmp_path: Path) -> None:
    proxy, report = built(access, "paper_proxy"), built(access, "paper_report")
    assert [task.spec.task for task in proxy.tasks] == list(PRESETS["paper_proxy"])
    assert [task.metric.name for task in proxy.tasks] == [
        "acc",
        "exact_match",
        "acc_norm",
        "acc",
        "pass_at_1",
        "pass_at_1",
    ]
    assert [task.task.config.num_fewshot for task in proxy.tasks] == [0, 5, 25, 5, 3, 0]
    assert {len(task.items) for task in proxy.tasks} == {3}
    with pytest.raises(EvaluationError, match="share 12 items"):
        check_disjoint(proxy, report)
    assert report.without(frozenset()).digest == report.digest
    parted = report.without(frozenset(proxy.item_ids))
    check_disjoint(proxy, parted)
    assert parted.digest != report.digest
    sizes = {task.spec.task: len(task.items) for task in parted.tasks}
    assert sizes["paper_arc"] == sizes["paper_gsm8k"] == sizes["paper_winogrande"] == 3
    assert sizes["mmlu_anatomy"] == 3
    # MMLU is one task among six, whatever number of subjects it has.
    weights = [task.weight for task in parted.tasks if task.spec.group == "paper_mmlu"]
    assert len(weights) == 57
    assert sum(weights) == pytest.approx(1)
    assert {task.task.config.num_fewshot for task in parted.tasks if task.spec.group} == {5}


@needs_sandbox
def test_the_proxy_is_scored(access: HubAccess, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path, max_position_embeddings=4096))
    tokenizer = char_tokenizer()
    tokenizer.model_max_length = 4096
    score = Scorer(built(access, "paper_proxy"), "cpu").score(model, tokenizer)
    assert [len(task.values) for task in score.tasks] == [3] * 6
    assert 0 <= score.mean <= 1


def test_every_data_set_is_pinned(access: HubAccess) -> None:
    suite = found(access, "paper_proxy")
    assert {each.task for each in suite.data} == set(PRESETS["paper_proxy"])
    assert {each.repo for each in suite.data if each.task == "paper_tiny_arc"} == {
        "tinyBenchmarks/tinyAI2_arc",
        "allenai/ai2_arc",
    }
    assert all(len(each.commit) == 40 for each in suite.data)
