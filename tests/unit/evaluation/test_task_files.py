from pathlib import Path
from typing import Any

import pytest
import yaml

from glue.evaluation.task_files import TaskFolder
from glue.evaluation.tasks import load_task
from glue.specs.errors import EvaluationError, Fault
from tests.support.suites import choice_task, write_items, writing_task

GOOD: dict[str, Any] = {
    "task": "facts",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "facts.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_items(
        tmp_path / "facts.jsonl", [{"question": "sky?", "answer": "blue"}, {"question": "sun?", "answer": "up"}]
    )
    return tmp_path


def write(folder: Path, text: str | None = None, name: str = "facts.yaml", **changes: Any) -> None:
    config = {key: value for key, value in (GOOD | changes).items() if value is not None}
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False) + (text or ""), encoding="utf-8")


def refusal(folder: Path, name: str = "facts") -> EvaluationError:
    with pytest.raises(EvaluationError) as caught:
        load_task(TaskFolder(folder), name)
    assert caught.value.fault is Fault.USER
    return caught.value


def test_relative_data_files_are_found_beside_their_yaml(folder: Path) -> None:
    (folder / "deep").mkdir()
    write_items(folder / "deep/own.jsonl", [{"question": "deep", "answer": "x"}])
    write(folder, name="deep/facts.yaml", dataset_kwargs={"data_files": {"test": "own.jsonl"}})
    task = load_task(TaskFolder(folder), "facts")
    assert list(task.eval_docs) == [{"question": "deep", "answer": "x"}]


def test_an_include_gives_what_the_file_itself_does_not_say(folder: Path) -> None:
    write(folder, name="base/common", task=None, dataset_kwargs={"data_files": {"test": "../facts.jsonl"}})
    (folder / "facts.yaml").write_text("task: facts\ninclude: base/common\ndescription: 'Say: '\n")
    task = load_task(TaskFolder(folder), "facts")
    assert task.config.description == "Say: "
    assert len(task.eval_docs) == 2


@pytest.mark.parametrize(
    ("line", "tag"),
    [
        ("process_docs: !function utils.process", "!function"),
        ("doc_to_text: !function utils.process", "!function"),
        ("metadata: !!python/object/apply:os.system ['touch trace']", "python/object"),
        ("metadata: !!python/name:os.system", "python/name"),
        ("metadata: !unknown x", "!unknown"),
    ],
)
def test_no_tag_constructs_anything(folder: Path, line: str, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "utils.py").write_text("open('trace', 'w')\n")
    key = line.split(":")[0]
    write(folder, line + "\n", **{key: None})
    error = refusal(folder)
    assert tag in error.detail
    assert "facts.yaml:" in error.detail
    assert not (folder / "trace").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class": "os.path"}, ["class", "Python class"]),
        ({"custom_dataset": "utils.load"}, ["custom_dataset"]),
        ({"process_docs": "utils.process"}, ["process_docs", "data files"]),
        ({"process_results": "utils.judge"}, ["process_results"]),
        ({"unsafe_code": True}, ["unsafe_code"]),
        ({"use_prompt": "promptsource:x"}, ["use_prompt"]),
        ({"group": "many"}, ["group"]),
        ({"dataset_path": "someone/dataset"}, ["dataset_path", "'json'"]),
        ({"dataset_path": "./script.py"}, ["dataset_path"]),
        ({"dataset_name": "subset"}, ["dataset_name"]),
        ({"dataset_kwargs": {"data_files": {"test": "facts.jsonl"}, "trust_remote_code": True}}, ["trust_remote_code"]),
        ({"dataset_kwargs": {"data_dir": "."}}, ["data_dir"]),
        ({"doc_to_txt": "{{question}}"}, ["doc_to_txt", "did you mean 'doc_to_text'?"]),
        ({"metric_list": [{"metric": "code_eval"}]}, ["metric_list", "exact_match"]),
        ({"metric_list": [{"metric": "exact_match", "hf_evaluate": True}]}, ["hf_evaluate"]),
        ({"metric_list": [{"metric": "exact_match", "aggregation": "os.system"}]}, ["aggregation"]),
        ({"filter_list": [{"name": "x", "filter": [{"function": "custom", "filter_fn": "f"}]}]}, ["function"]),
        ({"generation_kwargs": {"until": ["\n"], "custom_generate": "someone/code"}}, ["custom_generate"]),
        ({"generation_kwargs": {"do_sample": True}}, ["do_sample"]),
        ({"generation_kwargs": {"temperature": 0.7}}, ["temperature"]),
        ({"fewshot_config": {"process_docs": "utils.process"}}, ["process_docs"]),
        ({"fewshot_config": {"sampler": "os.system"}}, ["sampler"]),
        ({"test_split": "validation"}, ["validation", "data_files"]),
        ({"test_split": None}, ["test_split"]),
        ({"doc_to_target": None}, ["doc_to_target"]),
        ({"doc_to_text": ["a"]}, ["doc_to_text"]),
        ({"output_type": "chat"}, ["output_type"]),
        ({"output_type": "multiple_choice"}, ["doc_to_choice"]),
        ({"metric_list": [{"metric": "acc"}]}, ["generate_until has no metric acc", "exact_match"]),
    ],
)
def test_a_task_file_says_only_what_is_understood(folder: Path, changes: dict[str, Any], words: list[str]) -> None:
    write(folder, **changes)
    error = refusal(folder)
    assert "facts.yaml" in error.detail
    told = error.detail + " ".join(problem.pointer + problem.detail + problem.fix for problem in error.problems)
    assert all(word in told for word in words)


@pytest.mark.parametrize("given", ["../outside.jsonl", "{outside}", "link.jsonl", "linked/outside.jsonl"])
def test_data_files_stay_inside_the_folder(tmp_path: Path, given: str) -> None:
    folder, outside = tmp_path / "tasks", write_items(tmp_path / "outside.jsonl", [{"question": "q", "answer": "a"}])
    folder.mkdir()
    (folder / "link.jsonl").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path)
    write(folder, dataset_kwargs={"data_files": {"test": given.format(outside=outside)}})
    assert "outside the task folder" in refusal(folder).detail


@pytest.mark.parametrize("given", ["missing.jsonl", "*.jsonl", "https://example.org/facts.jsonl", "", "a\0b", 3, None])
def test_data_files_are_files(folder: Path, given: Any) -> None:
    write(folder, dataset_kwargs={"data_files": {"test": given}})
    assert refusal(folder).problems[0].pointer == "/dataset_kwargs/data_files"


@pytest.mark.parametrize("given", ["../other.yaml", "/etc/passwd", "missing.yaml", 7])
def test_includes_stay_inside_the_folder(tmp_path: Path, given: Any) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (tmp_path / "other.yaml").write_text("doc_to_text: x\n")
    write_items(folder / "facts.jsonl", [{"question": "q", "answer": "a"}])
    write(folder, include=given)
    assert refusal(folder).problems[0].pointer == "/include"


def test_a_linked_task_file_is_not_followed_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_items(folder / "facts.jsonl", [{"question": "q", "answer": "a"}])
    write(tmp_path, name="facts.yaml")
    (folder / "facts.yaml").symlink_to(tmp_path / "facts.yaml")
    assert "outside the task folder" in refusal(folder).detail


def test_an_include_cycle_is_told(folder: Path) -> None:
    write(folder, include="other.yaml")
    (folder / "other.yaml").write_text("include: facts.yaml\n")
    assert "includes itself" in refusal(folder).detail


def test_aliases_do_not_unfold(folder: Path) -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\n"
    (folder / "bomb.yaml").write_text("task: bomb\n" + bomb)
    assert "not readable as YAML: bomb.yaml" in refusal(folder, "bomb").detail


def test_an_unreadable_neighbour_disturbs_nobody(folder: Path) -> None:
    write(folder)
    (folder / "broken.yaml").write_text("task: [unclosed\n")
    (folder / "code.yaml").write_text("task: code\nprocess_docs: !function utils.process\n")
    assert len(load_task(TaskFolder(folder), "facts").eval_docs) == 2


def test_an_unknown_task_names_its_nearest_neighbour(folder: Path) -> None:
    write(folder)
    assert "did you mean 'facts'?" in refusal(folder, "fact").detail


def test_a_task_is_defined_once(folder: Path) -> None:
    write(folder)
    write(folder, name="again.yaml")
    assert "again.yaml, facts.yaml" in refusal(folder).detail


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="include_path"):
        TaskFolder(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"question": "q", "answer": "a"}\n{"question": \n', "line 2 is not JSON"),
        ('[{"question": "q", "answer": "a"}]\n', "line 1 holds no object"),
        ("\n\n", "no item"),
        ('{"question": "q", "answer": 1}\n{"question": "q", "answer": "a"}\n', "cannot be read as json"),
    ],
)
def test_malformed_data_are_told_with_their_line(folder: Path, content: str, words: str) -> None:
    write(folder)
    (folder / "facts.jsonl").write_text(content)
    assert words in refusal(folder).detail


def test_a_key_that_only_later_items_have_is_a_field(folder: Path) -> None:
    write(folder)
    write_items(
        folder / "facts.jsonl", [{"question": "q", "answer": "a"}, {"question": "q", "answer": "a", "more": "m"}]
    )
    assert [doc["more"] for doc in load_task(TaskFolder(folder), "facts").eval_docs] == [None, "m"]


def test_a_template_that_names_no_field_is_told(folder: Path) -> None:
    write(folder, doc_to_text="{{questoin}}")
    assert "'questoin' is undefined" in refusal(folder).detail


def test_csv_and_parquet_are_read(folder: Path) -> None:
    from pyarrow import csv, parquet

    (folder / "facts.csv").write_text('question,answer\n"sky, at noon?",blue\nsun?,\n')
    parquet.write_table(csv.read_csv(folder / "facts.csv"), folder / "facts.parquet")
    for kind in ("csv", "parquet"):
        write(folder, dataset_path=kind, dataset_kwargs={"data_files": {"test": f"facts.{kind}"}})
        docs = list(load_task(TaskFolder(folder), "facts").eval_docs)
        assert docs == [{"question": "sky, at noon?", "answer": "blue"}, {"question": "sun?", "answer": ""}]


def test_no_cache_and_no_network_are_touched(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    choice_task(folder, "choice", 3)
    writing_task(folder, "sums", 3)
    for name in ("choice", "sums"):
        load_task(TaskFolder(folder), name)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "few-shot examples need a fewshot_split"),
        ({"test_split": None, "validation_split": "test", "fewshot_split": "test"}, "would hold the answer"),
        ({"training_split": "test"}, "would hold the answer"),
    ],
)
def test_examples_do_not_give_answers_away(folder: Path, changes: dict[str, Any], words: str) -> None:
    write(folder, num_fewshot=1, **changes)
    assert words in refusal(folder).detail
