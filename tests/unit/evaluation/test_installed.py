"""lm-eval's own tasks over small data sets on a stand-in for the Hub, against `simple_evaluate` on the same files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM

from glue.evaluation.scorer import Scorer
from glue.evaluation.suite import Suite, load_suite
from glue.references.findings import Findings
from glue.references.hub_access import HubAccess
from glue.references.hub_datasets import DataSets, download_data
from glue.references.installed_tasks import installed_tasks
from glue.references.tasks import FoundSuite, find_tasks
from glue.specs.errors import EvaluationError, InvalidInputError
from glue.specs.suite import SuiteSpec
from tests.support.data_sets import add_data_set, write_card, write_lines
from tests.support.hub.pushing import go_online
from tests.support.hub.server import StandIn, hub
from tests.support.models import char_tokenizer, tiny_llama
from tests.support.suites import choice_task

LETTERS = ["A", "B", "C", "D"]


def arc(n: int) -> dict[str, Any]:
    texts = [f"it is {n + k}" for k in range(4)]
    return {"question": f"What is {n}?", "choices": {"label": LETTERS, "text": texts}, "answerKey": LETTERS[n % 4]}


def mmlu(n: int) -> dict[str, Any]:
    return {"question": f"Which one, {n}?", "subject": "anatomy", "choices": ["a", "bb", "ccc", "d"], "answer": n % 4}


def hellaswag(n: int) -> dict[str, Any]:
    endings = [f"runs {n}.", "sleeps [x] long.", "goes home.", "sings"]
    start = {"activity_label": "Dogs", "ctx_a": f"A dog {n} is here.", "ctx_b": "it"}
    return start | {"endings": endings, "label": str(n % 4)}


def gsm(n: int) -> dict[str, Any]:
    return {"question": f"{n} and one?", "answer": f"It is more.\n#### {n + 1}"}


def truth(n: int) -> dict[str, Any]:
    several = {"choices": [f"yes {n}", "no", "maybe so"], "labels": [1, 0, 1]}
    return {"question": f"Is {n} so?", "mc1_targets": several | {"labels": [1, 0, 0]}, "mc2_targets": several}


@dataclass(frozen=True)
class Place:
    """A stand-in with data sets, and the folders that they were made from."""

    standing: StandIn
    access: HubAccess
    folders: dict[str, Path]
    commits: dict[str, str]

    def found(self, suite: dict[str, Any]) -> FoundSuite:
        findings = Findings()
        found = find_tasks(SuiteSpec.parse(suite), "/proxy", [Path("/")], findings, DataSets(self.access))
        findings.raise_any()
        return found

    def suite(self, suite: dict[str, Any]) -> Suite:
        found = self.found(suite)
        for each in found.data:
            paths = [path for paths in each.splits.values() for path in paths]
            download_data(each.repo, each.commit, paths, self.access, lambda *_: None)
        return load_suite(found.spec, char_tokenizer(), found.data)


def rows(make: Any, first: int, count: int) -> list[dict[str, Any]]:
    return [make(n) for n in range(first, first + count)]


SETS: dict[str, tuple[str | None, dict[str, list[dict[str, Any]]]]] = {
    "allenai/ai2_arc": (
        "ARC-Easy",
        {"train": rows(arc, 50, 6), "validation": rows(arc, 60, 3), "test": rows(arc, 0, 9)},
    ),
    "cais/mmlu": ("anatomy", {"test": rows(mmlu, 0, 8), "dev": rows(mmlu, 90, 5)}),
    "Rowan/hellaswag": (None, {"train": rows(hellaswag, 50, 4), "validation": rows(hellaswag, 0, 7)}),
    "tinyBenchmarks/tinyGSM8k": ("main", {"train": rows(gsm, 50, 6), "test": rows(gsm, 0, 6)}),
    "truthfulqa/truthful_qa": ("multiple_choice", {"validation": rows(truth, 0, 6)}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch, hub(root / "hub") as standing:
        go_online(patch)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(root / "cache"))
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        folders = {repo: root / repo for repo in SETS}
        commits = {
            repo: add_data_set(standing.store, repo, folders[repo], splits, name)
            for repo, (name, splits) in SETS.items()
        }
        yield Place(standing, HubAccess(standing.url, root / "hub_cache"), folders, commits)
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_llama(tmp_path_factory.mktemp("model"), 5, max_position_embeddings=2048)
    return AutoModelForCausalLM.from_pretrained(folder)


def oracle(model: Any, place: Place, suite: Suite, patch: pytest.MonkeyPatch, folders: list[str]) -> Any:
    """lm-eval reads its own YAML, and the same files through `datasets`."""
    load = datasets.load_dataset
    patch.setattr("datasets.load_dataset", lambda path, name=None, **_: load(str(place.folders[path]), name))
    root = installed_tasks()
    assert root is not None
    include = [str(root.root / folder) for folder in folders]
    shots = {task.spec.task: task.task.config.num_fewshot for task in suite.tasks}
    assert len(set(shots.values())) == 1
    return lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=char_tokenizer(), batch_size=4),
        tasks=list(shots),
        num_fewshot=next(iter(shots.values())),
        task_manager=TaskManager(include_path=include, include_defaults=False),
        fewshot_random_seed=suite.spec.seed,
        bootstrap_iters=1,
    )


@pytest.mark.parametrize(
    ("tasks", "folders", "metric"),
    [
        ([{"task": "arc_easy", "num_fewshot": 2, "metric": "acc_norm"}], ["arc"], "acc_norm"),
        ([{"task": "mmlu_anatomy", "num_fewshot": 3}], ["mmlu/default"], "acc"),
        (["hellaswag"], ["hellaswag"], "acc"),
        (["truthfulqa_mc2"], ["truthfulqa"], "acc"),
        ([{"task": "tinyGSM8k", "filter": "flexible-extract"}], None, "exact_match"),
    ],
)
def test_scores_are_lm_evals(
    tasks: list[Any],
    folders: list[str] | None,
    metric: str,
    place: Place,
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    suite = place.suite({"tasks": tasks, "seed": 7, "batch": 4})
    score = Scorer(suite, "cpu").score(model, char_tokenizer())
    if folders is None:
        tasks_of_lm_eval = installed_tasks()
        assert tasks_of_lm_eval is not None
        # Only the function that makes one number of all items needs a package that is not here.
        config = (tasks_of_lm_eval.root / "tinyBenchmarks/tinyGSM8k.yaml").read_text()
        (tmp_path / "tiny.yaml").write_text(config.replace("!function agg_functions.agg_gpirt_gsm8k", "mean"))
        folders = [str(tmp_path)]
    expected = oracle(model, place, suite, monkeypatch, folders)
    (task,) = score.tasks
    samples = [each for each in expected["samples"][task.task] if each["filter"] in ("none", "flexible-extract")]
    samples.sort(key=lambda each: each["doc_id"])
    assert task.values == pytest.approx([float(each[metric]) for each in samples], abs=2e-5)
    assert [item.requests[0].args[0] for item in suite.tasks[0].items] == [
        each["arguments"]["gen_args_0"]["arg_0"] if isinstance(each["arguments"], dict) else each["arguments"][0][0]
        for each in samples
    ]


def test_a_suite_pins_its_data_and_names_them_in_its_digest(place: Place, tmp_path: Path) -> None:
    found = place.found({"tasks": ["arc_easy"]})
    assert found.spec.tasks[0].revision == place.commits["allenai/ai2_arc"]
    assert [(each.repo, each.commit) for each in found.data] == [("allenai/ai2_arc", place.commits["allenai/ai2_arc"])]
    # Without examples the split that they would come from is not fetched.
    assert set(found.data[0].splits) == {"test"}
    before = place.suite({"tasks": ["arc_easy"]})
    assert before.digest == place.suite({"tasks": ["arc_easy"]}).digest
    name, splits = SETS["allenai/ai2_arc"]
    add_data_set(place.standing.store, "allenai/ai2_arc", tmp_path, splits | {"more": rows(arc, 70, 2)}, name)
    after = place.suite({"tasks": ["arc_easy"]})
    assert after.item_ids == before.item_ids
    assert after.digest != before.digest
    pinned = {"task": "arc_easy", "revision": place.commits["allenai/ai2_arc"]}
    assert place.suite({"tasks": [pinned]}).digest == before.digest


def test_a_groups_tasks_share_its_weight_by_their_items(place: Place, tmp_path: Path) -> None:
    card = [
        {"config_name": name, "data_files": [{"split": "test", "path": f"{name}.jsonl"}]}
        for name in ("ARC-Easy", "ARC-Challenge")
    ]
    repo = "allenai/ai2_arc"
    write_card(tmp_path, card)
    write_lines(tmp_path / "ARC-Easy.jsonl", rows(arc, 0, 9))
    write_lines(tmp_path / "ARC-Challenge.jsonl", rows(arc, 9, 3))
    revision = place.standing.store.add_folder(f"datasets/{repo}", tmp_path)
    suite = place.suite({"tasks": [{"task": "ai2_arc", "weight": 2, "revision": revision}]})
    assert [(task.spec.task, task.spec.group) for task in suite.tasks] == [
        ("arc_challenge", "ai2_arc"),
        ("arc_easy", "ai2_arc"),
    ]
    assert [task.weight for task in suite.tasks] == [0.5, 1.5]
    with pytest.raises(InvalidInputError, match="arc_easy appears twice"):
        place.found({"tasks": [{"task": "ai2_arc", "revision": revision}, {"task": "arc_easy", "revision": revision}]})


def test_a_folders_task_stands_beside_lm_evals_and_before_them(place: Place, tmp_path: Path) -> None:
    choice_task(tmp_path, "facts", 4)
    choice_task(tmp_path, "hellaswag", 4)
    suite = place.suite({"include_path": str(tmp_path), "tasks": ["facts", "hellaswag", "truthfulqa_mc2"]})
    assert [len(task.items) for task in suite.tasks] == [4, 4, 6]
    assert [bool(task.data) for task in suite.tasks] == [False, False, True]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"task": "hellaswg"}, "lm-eval has no task 'hellaswg'; did you mean 'hellaswag'"),
        ({"task": "humaneval"}, "runs programs of a model without a sandbox"),
        ({"task": "winogrande"}, "allenai/winogrande does not exist, or your token may not see it"),
        ({"task": "hellaswag", "revision": "v9"}, "has no such branch, tag or commit"),
        ({"task": "arc_challenge"}, "no configuration 'ARC-Challenge'; its configurations are"),
        ({"task": "truthfulqa_mc2", "num_fewshot": 1}, "from the evaluated split and would hold the answer"),
    ],
)
def test_what_cannot_be_used_is_told_at_submission(task: dict[str, Any], message: str, place: Place) -> None:
    pinned = {"revision": place.commits["allenai/ai2_arc"]} if task["task"] == "arc_challenge" else {}
    with pytest.raises(InvalidInputError, match=message) as refused:
        place.found({"tasks": [task | pinned]})
    assert refused.value.problems[0].pointer == "/proxy/tasks/0/task"
    assert refused.value.problems[0].fix


def test_without_the_hub_or_its_data_the_error_says_so(place: Place) -> None:
    findings = Findings()
    find_tasks(SuiteSpec.parse({"tasks": ["hellaswag"]}), "/proxy", [], findings, None)
    assert "come from the Hub (Rowan/hellaswag), which cannot be used here" in findings.problems[0].detail
    with pytest.raises(EvaluationError, match="the data of hellaswag come from the Hub and are not here"):
        load_suite(SuiteSpec.parse({"tasks": ["hellaswag"]}))
