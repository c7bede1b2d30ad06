"""lm-eval's own tasks as files: found by name, group and tag; what reaches beyond the package is refused."""

from pathlib import Path

import pytest

from glue.references.installed_tasks import InstalledTasks, PackageFunction, installed_tasks
from glue.specs.errors import InvalidInputError

PLAIN = "dataset_path: org/data\noutput_type: multiple_choice\n"


def package(root: Path, files: dict[str, str]) -> InstalledTasks:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return InstalledTasks(root)


def real() -> InstalledTasks:
    found = installed_tasks()
    assert found is not None
    return found


def test_tasks_of_the_installed_package_are_read_with_their_includes() -> None:
    easy = real().read("arc_easy")
    assert (easy["dataset_path"], easy["dataset_name"]) == ("allenai/ai2_arc", "ARC-Easy")
    anatomy = real().read("mmlu_anatomy")
    assert (anatomy["dataset_path"], anatomy["dataset_name"], anatomy["fewshot_split"]) == (
        "cais/mmlu",
        "anatomy",
        "dev",
    )
    function = real().read("hellaswag")["process_docs"]
    assert function == PackageFunction(real().root / "hellaswag/utils.py", "process_docs")


def test_groups_and_tags_are_their_tasks() -> None:
    assert len(real().expand("mmlu")) == 57
    assert real().expand("ai2_arc") == [("arc_challenge", None), ("arc_easy", None)]
    assert dict(real().expand("tinyBenchmarks"))["tinyArc"] == 25
    assert real().expand("arc_easy") == [("arc_easy", None)]
    assert real().nearest("hellaswg") == "hellaswag"


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("humaneval", "runs programs of a model without a sandbox"),
        ("squadv2", "a Python class of its own"),
        ("niah_single_1", "made by a function that fetches them itself"),
        ("arithmetic_1dc", "no repository of the Hub as its data set, but 'json'"),
        ("meddialog_raw_dialogues", r"reaches beyond it \(import evaluate\)"),
    ],
)
def test_tasks_that_need_more_than_data_are_refused_with_the_reason(task: str, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason) as refused:
        real().read(task)
    assert "local YAML file" in refused.value.problems[0].fix


def test_a_function_outside_the_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("def f(): ...\n")
    tasks = package(
        tmp_path / "tasks",
        {
            "a/a.yaml": f"task: a\n{PLAIN}process_docs: !function ..evil.f\n",
            "b/b.yaml": f"task: b\n{PLAIN}process_docs: !function os.system\n",
            "c/c.yaml": f"task: c\n{PLAIN}doc_to_text: !!python/object/apply:os.system [ls]\n",
        },
    )
    for name in "ab":
        with pytest.raises(InvalidInputError, match="is not in the package's tasks"):
            tasks.read(name)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        tasks.read("c")


def test_a_module_that_reaches_out_by_way_of_another_is_refused(tmp_path: Path) -> None:
    tasks = package(
        tmp_path,
        {
            "a/a.yaml": f"task: a\n{PLAIN}process_docs: !function utils.f\n",
            "a/utils.py": "from lm_eval.tasks.b.fetching import g\ndef f(docs): return docs\n",
            "b/fetching.py": "import datasets\nd = datasets.load_dataset('x')\n",
        },
    )
    with pytest.raises(InvalidInputError, match=r"reaches beyond it \(load_dataset\(\)\)"):
        tasks.read("a")


def test_a_group_may_give_its_tasks_examples_and_nothing_else(tmp_path: Path) -> None:
    tasks = package(
        tmp_path,
        {
            "a.yaml": f"task: a\n{PLAIN}tag: [letters]\n",
            "b.yaml": f"task: b\n{PLAIN}tag:\n  - letters\n",
            "g.yaml": "group: g\ntask:\n  - task: a\n    num_fewshot: 3\n  - letters\n",
            "h.yaml": "group: h\ntask:\n  - task: a\n    dataset_name: other\n",
        },
    )
    assert tasks.expand("letters") == [("a", None), ("b", None)]
    assert tasks.expand("g") == [("a", 3), ("b", None)]
    with pytest.raises(InvalidInputError, match="the group h changes dataset_name of its tasks; name the tasks"):
        tasks.expand("h")
