import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glue.evaluation.suite import Suite, check_disjoint, drawn, load_suite
from glue.specs.errors import EvaluationError, InvalidInputError
from glue.specs.suite import SuiteSpec
from tests.support.suites import choice_task, text_task, write_items, write_task, writing_task


def suite(folder: Path, *tasks: dict[str, Any], **settings: Any) -> Suite:
    return load_suite(SuiteSpec.parse({"include_path": str(folder), "tasks": list(tasks), **settings}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    choice_task(tmp_path, "choice", 12)
    text_task(tmp_path, "text", 6)
    writing_task(tmp_path, "sums", 10)
    return tmp_path


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_a_limit_draws_that_many_items_in_order(size: int, limit: int, seed: int) -> None:
    indices = drawn(size, limit, seed, "task")
    assert len(indices) == min(limit, size)
    assert indices == sorted(set(indices))
    assert all(0 <= index < size for index in indices)


@given(st.integers(2, 100), st.integers(1, 99), st.integers(0, 2**32 - 1))
def test_a_smaller_limit_draws_a_part(size: int, limit: int, seed: int) -> None:
    assert set(drawn(size, limit, seed, "task")) <= set(drawn(size, limit + 1, seed, "task"))


def test_the_draw_is_what_it_always_was() -> None:
    assert drawn(10, 4, 0, "facts") == [1, 3, 8, 9]
    assert drawn(10, 4, 1, "facts") != drawn(10, 4, 0, "facts")
    assert drawn(10, 4, 0, "sums") != drawn(10, 4, 0, "facts")


def test_items_come_in_the_order_of_tasks_and_data(folder: Path) -> None:
    built = suite(folder, {"task": "sums"}, {"task": "choice", "limit": 5})
    assert [task.spec.task for task in built.tasks] == ["sums", "choice"]
    assert len(built.item_ids) == len(built.contexts()) == 15
    documents = [doc["prompt"] for doc in built.tasks[0].task.eval_docs]
    assert built.contexts()[:10] == documents


def test_a_whole_text_is_its_own_context(folder: Path) -> None:
    built = suite(folder, {"task": "text"})
    assert built.contexts() == [doc["text"] for doc in built.tasks[0].task.eval_docs]


def test_an_item_is_its_question_and_its_right_answer(tmp_path: Path) -> None:
    rows = [
        {"q": "sky", "a": ["blue", "red"], "n": 0},
        {"q": "sky", "a": ["green", "blue"], "n": 1},
        {"q": "sky", "a": ["blue", "red"], "n": 1},
    ]
    settings = {"output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "a", "doc_to_target": "n"}
    write_task(tmp_path, "facts", rows, **settings)
    first, reordered, other_answer = suite(tmp_path, {"task": "facts"}).item_ids
    assert first == reordered != other_answer


def test_examples_and_descriptions_do_not_change_an_item(tmp_path: Path) -> None:
    writing_task(tmp_path, "sums", 8)
    plain = suite(tmp_path, {"task": "sums"})
    writing_task(tmp_path, "sums", 8, fewshot_split="test", description="Add. ")
    shown = suite(tmp_path, {"task": "sums", "num_fewshot": 2})
    assert shown.item_ids == plain.item_ids
    assert shown.digest != plain.digest
    assert all(context.count("=") == 3 and context.startswith("Add. ") for context in shown.contexts())


def test_examples_never_hold_the_item_itself(tmp_path: Path) -> None:
    writing_task(tmp_path, "sums", 5, fewshot_split="test")
    for task in suite(tmp_path, {"task": "sums", "num_fewshot": 4}).tasks:
        for item in task.items:
            assert item.context.count(item.requests[0].doc["prompt"]) == 1


def test_contexts_that_differ_by_choice_are_told_apart(tmp_path: Path) -> None:
    rows = [{"options": [f"he {n}", f"she {n}"], "right": n % 2, "end": f" left {n}"} for n in range(4)]
    settings = {"doc_to_text": "{{right}}", "doc_to_choice": "options", "doc_to_target": "{{end}}"}
    write_task(tmp_path, "who", rows, output_type="multiple_choice", **settings)
    built = suite(tmp_path, {"task": "who"})
    assert len(set(built.item_ids)) == 4
    assert [len(item.requests) for item in built.tasks[0].items] == [2] * 4


def test_the_digest_does_not_depend_on_the_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = tmp_path_factory.mktemp("elsewhere") / "tasks"
    shutil.copytree(folder, moved)
    for path in moved.glob("*.yaml"):
        path.write_text(path.read_text().replace(str(folder), str(moved)))
    tasks = [{"task": "choice"}, {"task": "text"}, {"task": "sums"}]
    assert suite(folder, *tasks).digest == suite(moved, *tasks).digest


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ({"limit": 5}, {}),
        ({"metric": "acc_norm"}, {}),
        ({"weight": 2}, {}),
        ({}, {"seed": 1}),
        ({}, {"threads": 2}),
        ({}, {"batch": 8}),
        ({}, {"dtype": "bfloat16"}),
    ],
)
def test_the_digest_covers_what_the_spec_says(folder: Path, task: dict[str, Any], settings: dict[str, Any]) -> None:
    assert suite(folder, {"task": "choice"} | task, **settings).digest != suite(folder, {"task": "choice"}).digest


def test_the_digest_covers_data_answers_and_configuration(folder: Path) -> None:
    digests = [suite(folder, {"task": "sums"}).digest]
    writing_task(folder, "sums", 10, generation_kwargs={"until": ["\n"], "max_gen_toks": 13})
    digests.append(suite(folder, {"task": "sums"}).digest)
    writing_task(folder, "sums", 10, doc_to_target="{{sum}}0")
    digests.append(suite(folder, {"task": "sums"}).digest)
    writing_task(folder, "sums", 10, seed=1)
    digests.append(suite(folder, {"task": "sums"}).digest)
    assert len(set(digests)) == 4


def test_suites_that_share_an_item_are_refused(tmp_path: Path) -> None:
    rows = [{"q": f"{n}+1=", "a": str(n + 1)} for n in range(10)]
    settings = {"output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}"}
    for name, part in {"proxy": rows[:5], "report": rows[5:], "leaky": rows[4:]}.items():
        write_task(tmp_path, name, part, **settings)
    proxy, report, leaky = (suite(tmp_path, {"task": name}) for name in ("proxy", "report", "leaky"))
    check_disjoint(proxy, report)
    with pytest.raises(EvaluationError, match=r"share 1 items, for example one that ends in '4\+1='"):
        check_disjoint(proxy, leaky)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"task": "choice", "metric": "exact_match"}, "no metric 'exact_match'; it has: acc, acc_norm"),
        ({"task": "choice", "limit": 1}, "at least two items"),
        ({"task": "choises"}, "did you mean 'choice'"),
    ],
)
def test_a_suite_that_cannot_be_scored_is_refused(folder: Path, task: dict[str, Any], words: str) -> None:
    with pytest.raises(EvaluationError, match=words):
        suite(folder, task)


def test_a_suite_needs_a_task_folder() -> None:
    with pytest.raises(EvaluationError, match="include_path"):
        load_suite(SuiteSpec.parse({"tasks": [{"task": "hellaswag"}]}))


def test_a_right_answer_that_is_no_choice_is_told(tmp_path: Path) -> None:
    choice_task(tmp_path, "choice", 4, doc_to_target="{{right + 4}}")
    with pytest.raises(EvaluationError, match="task choice"):
        suite(tmp_path, {"task": "choice"})


@pytest.mark.parametrize(
    ("task", "metric"), [("choice", "acc"), ("text", "inverse_word_perplexity"), ("sums", "exact_match")]
)
def test_the_first_metric_is_the_score(folder: Path, task: str, metric: str) -> None:
    assert suite(folder, {"task": task}).tasks[0].metric.name == metric


def test_the_file_may_list_another_metric_first(tmp_path: Path) -> None:
    choice_task(tmp_path, "choice", 4, metric_list=[{"metric": "acc_norm"}, {"metric": "acc"}])
    assert suite(tmp_path, {"task": "choice"}).tasks[0].metric.name == "acc_norm"
    assert suite(tmp_path, {"task": "choice", "metric": "acc"}).tasks[0].metric.name == "acc"


def test_items_are_taken_by_their_places(folder: Path) -> None:
    whole, some = suite(folder, {"task": "sums"}), suite(folder, {"task": "sums", "items": [7, 0, 2]})
    assert some.item_ids == [whole.item_ids[place] for place in (0, 2, 7)]
    with pytest.raises(EvaluationError, match="items names 10, but its data have 10"):
        suite(folder, {"task": "sums", "items": [0, 10]})


@pytest.mark.parametrize(
    ("given", "words"), [({"items": [0, 1], "limit": 2}, "limit or items"), ({"items": [1, 1]}, "twice")]
)
def test_items_are_said_in_one_way(folder: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        suite(folder, {"task": "sums", **given})


@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_smaller_share_is_a_part_of_a_larger(one: float, other: float) -> None:
    with TemporaryDirectory() as place:
        writing_task(Path(place), "sums", 10)
        whole = suite(Path(place), {"task": "sums"})
    less, more = (whole.part(share).item_ids for share in sorted((one, other)))
    assert set(less) <= set(more)
    assert more == [item for item in whole.item_ids if item in more]


def test_a_part_draws_what_a_smaller_limit_draws(folder: Path) -> None:
    part = suite(folder, {"task": "sums"}, {"task": "choice"}).part(0.5)
    assert part.item_ids == suite(folder, {"task": "sums", "limit": 5}, {"task": "choice", "limit": 6}).item_ids
    for share in (0, -1, 1.5):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            part.part(share)


def test_fixed_shots_are_the_first(tmp_path: Path) -> None:
    shots = write_items(tmp_path / "shots.jsonl", [{"prompt": f"{n}+1=", "sum": str(n + 1)} for n in range(6)])
    files = {"data_files": {"test": str(tmp_path / "sums.jsonl"), "train": str(shots)}}
    writing_task(tmp_path, "sums", 10, dataset_kwargs=files, fewshot_split="train")
    begin = "0+1= 1\n\n1+1= 2\n\n"
    fixed = suite(tmp_path, {"task": "sums", "num_fewshot": 2, "fixed_shots": True})
    drawn_shots = suite(tmp_path, {"task": "sums", "num_fewshot": 2})
    assert all(context.startswith(begin) for context in fixed.contexts())
    assert not all(context.startswith(begin) for context in drawn_shots.contexts())


def test_a_filter_is_named_or_told(tmp_path: Path) -> None:
    filters = [{"name": name, "filter": [{"function": "take_first"}]} for name in ("first", "second")]
    writing_task(tmp_path, "sums", 4, filter_list=filters)
    assert suite(tmp_path, {"task": "sums", "filter": "second"}).tasks[0].spec.filter == "second"
    with pytest.raises(EvaluationError, match="no filter 'third'; it has: first, second"):
        suite(tmp_path, {"task": "sums", "filter": "third"})


def test_a_missing_chat_template_is_told(folder: Path) -> None:
    with pytest.raises(EvaluationError, match="chat template") as caught:
        load_suite(SuiteSpec.parse({"include_path": str(folder), "tasks": [{"task": "sums"}], "chat_template": True}))
    assert caught.value.problems[0].pointer == "/chat_template"
