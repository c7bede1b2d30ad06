"""The plain path is the oracle: each continuation after its context, in a sequence of its own."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, PreTrainedModel

from glue.evaluation.batches import Batch
from glue.evaluation.choices import close_choices
from glue.evaluation.language_model import Encoder, ResidentModel
from glue.evaluation.likelihood import Query, log_likelihoods
from glue.evaluation.scorer import Scorer
from glue.evaluation.shared import shared_log_likelihoods
from glue.evaluation.suite import load_suite
from glue.specs.suite import SuiteSpec
from tests.support.models import char_tokenizer, tiny_llama, tiny_neox, tiny_qwen3
from tests.support.suites import choice_task, writing_task

LENGTH = 256
MAKERS: list[Callable[..., Path]] = [tiny_llama, tiny_neox, tiny_qwen3]


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = request.param(tmp_path_factory.mktemp("model"), 5, tie_word_embeddings=False)
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder).eval()
    return loaded


def plain(model: PreTrainedModel, queries: list[Query], batch: int = 8) -> list[tuple[float, bool]]:
    with torch.inference_mode():
        return log_likelihoods(model, queries, Batch(batch), LENGTH)


def shared(model: PreTrainedModel, queries: list[Query], batch: int = 8) -> list[tuple[float, bool]]:
    with torch.inference_mode():
        return shared_log_likelihoods(model, queries, Batch(batch), LENGTH, 1e-4)


def same(found: list[tuple[float, bool]], expected: list[tuple[float, bool]]) -> None:
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], abs=2e-5, rel=2e-6)


def tokens(random: Random, length: int) -> tuple[int, ...]:
    return tuple(random.randrange(4, 90) for _ in range(length))


def shots(count: int, prefix: int = 90, rest: int = 12, choices: int = 4) -> list[Query]:
    """Items of several choices after examples that they share."""
    random = Random(count)
    begin = tokens(random, prefix)
    contexts = [begin + tokens(random, random.randint(1, rest)) for _ in range(count)]
    return [Query(context, tokens(random, random.randint(1, 6))) for context in contexts for _ in range(choices)]


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize("prefix", [0, 40, 200])
def test_sharing_changes_nothing_but_rounding(model: PreTrainedModel, prefix: int, batch: int) -> None:
    queries = shots(7, prefix)
    same(shared(model, queries, batch), plain(model, queries))


PIECE = st.lists(st.integers(4, 8), min_size=1, max_size=5).map(tuple)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prefixes=st.lists(st.sampled_from([(), (5,) * 40, (6, 7) * 30, (5,) * 40 + (6,) * 30]), min_size=1, max_size=6),
    pieces=st.lists(st.tuples(PIECE, PIECE), min_size=6, max_size=6),
)
def test_any_mixture_of_contexts_is_answered_in_order(
    model: PreTrainedModel, prefixes: list[tuple[int, ...]], pieces: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    queries = [
        Query(prefix + context, continuation)
        for prefix, (context, _) in zip(prefixes, pieces, strict=False)
        for _, continuation in pieces
    ]
    same(shared(model, queries, 4), plain(model, queries))


def test_what_a_model_is_asked_to_compute(model: PreTrainedModel) -> None:
    queries = shots(10, prefix=200)
    shared(model, queries)
    computed: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: computed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    shared(model, queries, 100)
    handle.remove()
    # The examples once, and each context and its choices at most as long as the longest; not 40 times 210 tokens.
    assert sum(computed) < 200 + 10 * (12 + 4 * 5) + 200


def test_equal_choices_stay_exactly_equal(model: PreTrainedModel) -> None:
    query = Query((5, 6, 7), (8, 9))
    found = shared(model, [query, Query((5, 6, 7), (9, 9)), query])
    assert found[0] == found[2]


def test_too_long_inputs_take_the_plain_path(model: PreTrainedModel) -> None:
    queries = shots(3, prefix=256, rest=30)
    assert shared(model, queries) == plain(model, queries)
    some = shots(3, prefix=250, rest=30)
    same(shared(model, some), plain(model, some))


@pytest.mark.parametrize("change", [{"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 0}])
def test_a_model_with_a_window_takes_the_plain_path(tmp_path: Path, change: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3(tmp_path, 5, **change)).eval()
    queries = shots(4)
    assert shared(model, queries) == plain(model, queries)


def choices(*texts: str) -> list[Instance]:
    return [
        Instance("loglikelihood", {}, ("Q:", text), number, metadata=("t", 0, 1)) for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("texts", "sums", "close"),
    [
        ([" a", " b"], [-1.0, -1.5], False),
        ([" a", " b"], [-1.0, -1.00001], True),
        ([" aa", " b"], [-2.0, -1.0], True),
        ([" aa", " b"], [-2.0, -1.1], False),
        ([" äx", " bb", " c"], [-5.0, -5.0, -1.0], False),
        ([" äx", " bb"], [-3.0, -2.0], True),
        ([" a", " a", " b"], [-1.0, -1.0, -2.0], False),
    ],
)
def test_choices_that_rounding_could_decide_are_known(texts: list[str], sums: list[float], close: bool) -> None:
    assert bool(close_choices(choices(*texts), sums)) == close


def test_close_choices_are_answered_by_the_plain_path(tmp_path: Path) -> None:
    """With all weights zero every token is equally likely: all choices of equal length tie."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path, 1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    requests = choices(" ab", " cd", " ef")
    with torch.inference_mode():
        found = ResidentModel(model, Encoder(char_tokenizer()), 8).loglikelihood(requests)
        expected = ResidentModel(model, Encoder(char_tokenizer()), 8, share=False).loglikelihood(requests)
    assert found == expected


class Full:
    """A model's memory: it takes at most so many rows."""

    def __init__(self, model: PreTrainedModel, rows: int, error: Exception) -> None:
        self.rows, self.error, self.seen = rows, error, list[int]()
        self.handle = model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: Any, args: Any, kwargs: Any) -> None:
        self.seen.append(len(kwargs["input_ids"]))
        if self.seen[-1] > self.rows:
            raise self.error


ERRORS = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu"])
def test_out_of_memory_halves_the_batch_and_is_told(tmp_path: Path, error: Exception) -> None:
    choice_task(tmp_path / "tasks", "choice", 20, letters=4)
    writing_task(tmp_path / "tasks", "sums", 20)
    tasks = [{"task": "choice"}, {"task": "sums"}]
    suite = load_suite(SuiteSpec.parse({"include_path": str(tmp_path / "tasks"), "tasks": tasks, "batch": 16}))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path / "model", 1))
    scorer = Scorer(suite, "cpu")
    expected = scorer.score(model, char_tokenizer())
    assert scorer.degraded == ""
    full = Full(model, 5, error)
    assert scorer.score(model, char_tokenizer()).tasks == expected.tasks
    assert scorer.degraded == "out of memory: batch 16 reduced to 4"
    full.handle.remove()
    scorer.score(model, char_tokenizer())
    assert scorer.degraded == ""


def test_memory_that_does_not_hold_one_row_is_an_error(model: PreTrainedModel) -> None:
    queries = shots(4)
    shared(model, queries)
    full = Full(model, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        shared(model, queries)
    full.handle.remove()


def test_other_errors_are_not_taken_for_memory(model: PreTrainedModel) -> None:
    queries = shots(4)
    shared(model, queries)
    full = Full(model, 0, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        shared(model, queries)
    full.handle.remove()
    assert max(full.seen) > 0
