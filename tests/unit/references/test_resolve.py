"""A request becomes a stored spec, or every mistake in it is told at once, each where the user finds it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glue.references.resolve import check_zoo, resolve_job
from glue.references.tasks import task_names
from glue.specs.errors import GlueError, IncompatibleModelsError, InvalidInputError
from glue.specs.job import JobRequest, JobSpec
from glue.specs.zoo import ZooSpec
from tests.support.model_folders import LLAMA, LLAMA_TENSORS, TOKENIZER, write_model, write_safetensors

TASK = "task: {name}\ndataset_path: json\nprocess_docs: !function utils.docs\n"


def job(root: Path, **more: Any) -> JobRequest:
    tasks = root / "tasks"
    tasks.mkdir(exist_ok=True)
    for name in ("math", "math_report"):
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name))
    suites = {
        "proxy": {"include_path": str(tasks), "tasks": [{"task": "math"}]},
        "report": {"include_path": str(tasks), "tasks": [{"task": "math_report"}]},
    }
    return JobRequest.parse({"kind": "model_glue", "zoo": "z", **suites, **more})


def zoo(root: Path, *members: str, base: str | None = None) -> ZooSpec:
    entries = [{"name": name, "source": str(root / name)} for name in members]
    return ZooSpec.parse({"name": "z", "members": entries} | ({"base": {"source": str(root / base)}} if base else {}))


def problems_of(call: Callable[[], object]) -> dict[str, list[str]]:
    """Pointer to the codes found there; every problem says what to do."""
    with pytest.raises(GlueError) as error:
        call()
    found: dict[str, list[str]] = {}
    for problem in error.value.problems:
        assert problem.fix
        assert problem.detail
        found.setdefault(problem.pointer, []).append(problem.code)
    return found


def test_a_good_request_is_resolved_completely(tmp_path: Path) -> None:
    for name in ("base", "a", "b"):
        write_model(tmp_path / name)
    spec = resolve_job(job(tmp_path), zoo(tmp_path, "a", "b", base="base"), [tmp_path], seed_default=7)
    assert [model.name for model in spec.models] == ["base", "a", "b"]
    assert spec.paths()["a"] == str(tmp_path / "a")
    assert spec.seed == 7
    assert spec.suite_commits["proxy"] == spec.suite_commits["report"]
    assert JobSpec.parse(spec.as_json()) == spec


def test_the_users_seed_is_kept(tmp_path: Path) -> None:
    write_model(tmp_path / "a")
    assert resolve_job(job(tmp_path, seed=0), zoo(tmp_path, "a"), [tmp_path], seed_default=7).seed == 0


def test_links_are_resolved_in_the_stored_spec(tmp_path: Path) -> None:
    write_model(tmp_path / "real")
    (tmp_path / "a").symlink_to(tmp_path / "real")
    request = job(tmp_path)
    (tmp_path / "t").symlink_to(tmp_path / "tasks")
    request = request.model_copy(
        update={"proxy": request.proxy.model_copy(update={"include_path": str(tmp_path / "t")})}
    )
    spec = resolve_job(request, zoo(tmp_path, "a"), [tmp_path], 0)
    assert spec.paths() == {"a": str(tmp_path / "real")}
    assert spec.proxy.include_path == str(tmp_path / "tasks")


@pytest.mark.parametrize("strategy", ["evolutionary", "random"])
def test_methods_on_task_vectors_need_a_base(strategy: str, tmp_path: Path) -> None:
    write_model(tmp_path / "a")
    request = job(tmp_path, search={"strategy": strategy, "methods": ["linear", "ties"]})
    assert problems_of(lambda: resolve_job(request, zoo(tmp_path, "a"), [tmp_path], 0)) == {
        "/search/methods": ["no_base"]
    }


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    write_model(tmp_path / "good")
    write_model(tmp_path / "other", tokenizer=TOKENIZER | {"model": {"vocab": {"z": 0}}})
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model.bin").write_text("")
    request = job(
        tmp_path,
        clustering={"weights": "task_vector", "threshold": 0.5},
        report={"include_path": "/etc", "tasks": [{"task": "x"}], "chat_template": True},
        proxy={"include_path": str(tmp_path / "tasks"), "tasks": [{"task": "math"}, {"task": "maths"}]},
    )
    found = problems_of(
        lambda: resolve_job(request, zoo(tmp_path, "good", "missing", "pickle", "other"), [tmp_path], 0)
    )
    assert found == {
        "/members/1/source": ["no_folder"],
        "/members/2/source": ["no_config", "not_safetensors", "no_tokenizer"],
        "/report/chat_template": ["no_chat_template"],
        "/clustering/weights": ["no_base"],
        "/proxy/tasks/1/task": ["unknown_task"],
        "/report/include_path": ["outside_roots"],
    }


def test_an_unknown_tasks_nearest_neighbour_is_named(tmp_path: Path) -> None:
    write_model(tmp_path / "a")
    request = job(tmp_path, proxy={"include_path": str(tmp_path / "tasks"), "tasks": [{"task": "mth"}]})
    with pytest.raises(InvalidInputError, match="did you mean 'math'"):
        resolve_job(request, zoo(tmp_path, "a"), [tmp_path], 0)


def test_a_suite_without_a_folder_takes_lm_evals_tasks(tmp_path: Path) -> None:
    write_model(tmp_path / "a")
    request = job(tmp_path, proxy={"tasks": ["anything", "arc_easy"]})
    with pytest.raises(InvalidInputError, match="lm-eval has no task 'anything'") as refused:
        resolve_job(request, zoo(tmp_path, "a"), [tmp_path], 0)
    assert [problem.code for problem in refused.value.problems] == ["unknown_task", "no_hub"]


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (LLAMA | {"auto_map": {"AutoModelForCausalLM": "m.M"}}, "custom_code"),
        (LLAMA | {"quantization_config": {"bits": 4}}, "quantised"),
        (LLAMA | {"vision_config": {}}, "not_text_only"),
        (LLAMA | {"architectures": ["BertForMaskedLM"]}, "not_causal"),
        (LLAMA | {"architectures": ["T5ForConditionalGeneration"]}, "not_causal"),
        (LLAMA | {"architectures": ["XForCausalLM"], "is_encoder_decoder": True}, "not_causal"),
        (LLAMA | {"architectures": []}, "no_architecture"),
        (LLAMA | {"architectures": "LlamaForCausalLM"}, "no_architecture"),
        (LLAMA | {"vocab_size": "many"}, "no_vocabulary"),
    ],
)
def test_models_of_another_kind_are_refused(tmp_path: Path, config: dict[str, Any], code: str) -> None:
    write_model(tmp_path / "a", config)
    found = problems_of(lambda: resolve_job(job(tmp_path), zoo(tmp_path, "a"), [tmp_path], 0))
    assert found == {"/members/0/source": [code]}


def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "a", tensors=dict(LLAMA_TENSORS) | {"lm_head.weight": ("F8_E4M3", (16, 8))})
    found = problems_of(lambda: resolve_job(job(tmp_path), zoo(tmp_path, "a"), [tmp_path], 0))
    assert found == {"/members/0/source": ["quantised"]}


def test_saved_constants_are_no_quantised_model(tmp_path: Path) -> None:
    constants = {
        "position_ids": ("I64", (1, 16)),
        "model.layers.0.attention.bias": ("U8", (1, 1, 16, 16)),
        "model.layers.0.attention.masked_bias": ("F32", ()),
    }
    write_model(tmp_path / "a", tensors=dict(LLAMA_TENSORS) | constants)
    assert resolve_job(job(tmp_path), zoo(tmp_path, "a"), [tmp_path], 0).models


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    write_safetensors(write_model(tmp_path / "a") / "model.safetensors", {})
    assert problems_of(lambda: check_zoo(zoo(tmp_path, "a"), [tmp_path])) == {"/members/0/source": ["no_weights"]}


def test_models_of_several_tokenizers_are_taken_and_each_needs_a_template_for_chats(tmp_path: Path) -> None:
    write_model(tmp_path / "a")
    write_model(tmp_path / "odd", tokenizer=TOKENIZER | {"normalizer": {"type": "Lowercase"}})
    members = zoo(tmp_path, "a", "odd")
    assert len(resolve_job(job(tmp_path), members, [tmp_path], 0).models) == 2
    chat = {"include_path": str(tmp_path / "tasks"), "tasks": [{"task": "math"}], "chat_template": True}
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(InvalidInputError, match="the tokenizer of odd has none"):
        resolve_job(job(tmp_path, proxy=chat), members, [tmp_path], 0)
    (tmp_path / "odd" / "chat_template.jinja").write_text("{{ messages }}")
    assert resolve_job(job(tmp_path, proxy=chat), members, [tmp_path], 0).proxy.chat_template


@pytest.mark.parametrize(
    ("mixture", "pointer"),
    [({"top_k": 2}, "/mixture/top_k"), ({"level": "ffn"}, "/mixture/level"), ({"dense_layers": 1}, "/mixture/level")],
)
def test_several_tokenizers_share_nothing_but_a_router(tmp_path: Path, mixture: dict[str, Any], pointer: str) -> None:
    write_model(tmp_path / "a")
    write_model(tmp_path / "odd", tokenizer=TOKENIZER | {"normalizer": {"type": "Lowercase"}})
    request = job(tmp_path, mixture=mixture)
    found = problems_of(lambda: resolve_job(request, zoo(tmp_path, "a", "odd"), [tmp_path], 0))
    assert "tokenizer_differs" in found[pointer]


def test_the_base_is_checked_like_a_member(tmp_path: Path) -> None:
    write_model(tmp_path / "a")
    write_model(tmp_path / "base", tokenizer=None)
    found = problems_of(lambda: check_zoo(zoo(tmp_path, "a", base="base"), [tmp_path]))
    assert found == {"/base/source": ["no_tokenizer"]}


def test_the_class_tells_models_from_requests(tmp_path: Path) -> None:
    write_model(tmp_path / "a", tokenizer=None)
    with pytest.raises(IncompatibleModelsError):
        check_zoo(zoo(tmp_path, "a"), [tmp_path])
    with pytest.raises(InvalidInputError):
        check_zoo(zoo(tmp_path, "a", "missing"), [tmp_path])


def test_an_unreadable_task_folder_is_not_a_models_fault(tmp_path: Path) -> None:
    write_model(tmp_path / "a")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "big.safetensors").write_bytes(b"\xff" * 2**20)
    with pytest.raises(InvalidInputError, match="proxy"):
        resolve_job(job(tmp_path), zoo(tmp_path, "a"), [tmp_path], 0)


class TestTaskNames:
    def test_names_are_found_and_nothing_runs(self, tmp_path: Path) -> None:
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "a.yaml").write_text(TASK.format(name="a"))
        (tmp_path / "b.yaml").write_text("task: b\nx: !!python/object/apply:os.system ['touch hacked']\n")
        (tmp_path / "group.yaml").write_text("group: g\ntask: [a, b]\n")
        (tmp_path / "broken.yaml").write_text("a: [")
        (tmp_path / "deep.yaml").write_text("[" * 10_000)
        (tmp_path / "c.yml").write_text("task: c")
        assert task_names(tmp_path) == {"a", "b"}

    @given(
        st.text(max_size=60) | st.sampled_from(["? [a]\n: b", "2024-13-45", "!!int x", "<<: 3", "!!binary é", "=: 1"])
    )
    def test_any_text_is_scanned(self, tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
        folder = tmp_path_factory.mktemp("any")
        (folder / "a.yaml").write_bytes(text.encode(errors="replace"))
        assert len(task_names(folder)) <= 1
