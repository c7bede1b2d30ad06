"""A mixture of two tokenizers scores each item as lm-eval scores the expert that the item is routed to."""

from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from glue.evaluation.scorer import Scorer
from glue.evaluation.suite import Suite, load_suite
from glue.mixture.load import load_model
from glue.mixture.router import pool_features, prototypes, read_embedding
from glue.specs.suite import SuiteSpec
from tests.support.mixtures import mix
from tests.support.models import char_tokenizer, tiny_llama, tiny_pair_neox
from tests.support.suites import choice_task, text_task, write_task, writing_task

TASKS = ("choice", "ends", "text", "sums")
OURS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
)
THEIRS = (
    "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}{{ m.content }};{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "chats"])
def chats(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def ours(chats: bool) -> PreTrainedTokenizerBase:
    tokenizer = char_tokenizer()
    tokenizer.chat_template = OURS if chats else None
    return tokenizer


@pytest.fixture(scope="module")
def suite(chats: bool, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    folder = tmp_path_factory.mktemp("tasks")
    choice_task(folder, "choice", 24, letters=4)
    # The contexts are the choices, as in WinoGrande: an item's answers come from one expert all the same.
    starts = [{"starts": [f"{n} the cat", f"dog {n * 7}"], "end": " sat down", "right": n % 2} for n in range(16)]
    settings = {"output_type": "multiple_choice", "doc_to_text": "right", "doc_to_choice": "starts"}
    write_task(folder, "ends", starts, doc_to_target="end", metric_list=[{"metric": "acc"}], **settings)
    text_task(folder, "text", 16, words=20)
    writing_task(folder, "sums", 16)
    spec = {"include_path": str(folder), "tasks": [{"task": task} for task in TASKS], "batch": 8}
    return load_suite(SuiteSpec.parse(spec | {"chat_template": chats}), ours(chats))


@pytest.fixture(scope="module")
def folders(chats: bool, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("experts")
    found = [tiny_llama(root / "chars", seed=1), tiny_pair_neox(root / "pairs", seed=2)]
    if chats:
        for folder, template in zip(found, (OURS, THEIRS), strict=True):
            (folder / "chat_template.jinja").write_text(template)
    return found


@pytest.fixture(scope="module")
def mixture(folders: list[Path], suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    contexts = [torch.tensor([char_tokenizer()(text)["input_ids"]]) for text in suite.contexts()]
    features = torch.cat([pool_features(read_embedding(folders[0]), ids) for ids in contexts])
    router = prototypes(features, [place % 2 for place in range(len(features))], 2)
    out = mix(tmp_path_factory.mktemp("mixture") / "mixture", folders, router)
    return load_model(out, torch.float32, "cpu")


@pytest.fixture(scope="module")
def alone(chats: bool, folders: list[Path], suite: Suite) -> list[dict[str, Any]]:
    """What lm-eval says of each expert by itself."""
    results = []
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
            tasks=list(TASKS),
            task_manager=TaskManager(include_path=suite.spec.include_path, include_defaults=False),
            bootstrap_iters=1,
            apply_chat_template=chats,
            fewshot_as_multiturn=chats,
        )
        results.append(found["samples"])
    return results


def test_every_answer_is_the_chosen_experts_under_lm_eval(
    chats: bool, mixture: Any, suite: Suite, alone: list[dict[str, Any]]
) -> None:
    Scorer(suite, "cpu").score(mixture, ours(chats))
    of_both = []
    for task in suite.tasks:
        chosen = set()
        for place, item in enumerate(task.items):
            ids = torch.tensor([char_tokenizer()(item.context)["input_ids"]])
            expert = int(mixture.route(ids).argmax())
            chosen.add(expert)
            theirs = alone[expert][task.spec.task][place]["resps"]
            for request, (answer,) in zip(item.requests, theirs, strict=True):
                assert_same(request.resps[0], answer)
        of_both += [task.spec.task] if chosen == {0, 1} else []
    assert len(of_both) >= 3, f"one expert answers everything but {of_both}"


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(ours, tuple):
        assert ours == (pytest.approx(theirs[0], rel=1e-5, abs=1e-5), theirs[1])
    else:
        assert ours == (pytest.approx(theirs, rel=1e-5) if isinstance(ours, float) else theirs)


def test_scores_do_not_depend_on_what_was_scored_before(
    chats: bool, mixture: Any, folders: list[Path], suite: Suite
) -> None:
    scorer = Scorer(suite, "cpu")
    first = scorer.score(mixture, ours(chats))
    scorer.score(load_model(folders[1], torch.float32, "cpu"), AutoTokenizer.from_pretrained(folders[1]))
    assert scorer.score(mixture, ours(chats)) == first


def test_a_model_of_another_tokenizer_is_asked_in_its_own_words(
    folders: list[Path], suite: Suite, alone: list[dict[str, Any]]
) -> None:
    model, tokenizer = load_model(folders[1], torch.float32, "cpu"), AutoTokenizer.from_pretrained(folders[1])
    score = Scorer(suite.part(0.5), "cpu").score(model, tokenizer)
    assert score.suite == suite.part(0.5).digest
    for task in suite.part(0.5).tasks:
        for item in task.items:
            theirs = alone[1][task.spec.task][item.requests[0].doc_id]["resps"]
            for request, (answer,) in zip(item.requests, theirs, strict=True):
                assert_same(request.resps[0], answer)
