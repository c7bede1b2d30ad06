"""Texts after prompts that begin alike: the same as on the plain path, with the beginning computed once."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from glue.evaluation.batches import Batch
from glue.evaluation.generation import generate
from glue.evaluation.memory import Room, row_bytes
from tests.support.models import char_tokenizer, tiny_llama, tiny_neox, tiny_qwen3

MAKERS: list[Callable[..., Path]] = [tiny_llama, tiny_neox, tiny_qwen3]
TOLERANCE = 1e-3


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = request.param(tmp_path_factory.mktemp("model"), 5, tie_word_embeddings=False)
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder).eval()
    return loaded


class Tokens:
    """Counts the tokens that a model runs."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.count = 0
        self._handle = model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: Any, args: Any, kwargs: Any) -> None:
        self.count += kwargs["input_ids"].numel()

    def stop(self) -> int:
        self._handle.remove()
        return self.count


def prompts(count: int, prefix: int = 120, rest: int = 20) -> list[tuple[int, ...]]:
    random = Random(count)
    begin = tuple(random.randrange(4, 90) for _ in range(prefix))
    return [begin + tuple(random.randrange(4, 90) for _ in range(random.randint(1, rest))) for _ in range(count)]


def texts(
    model: PreTrainedModel, asked: list[tuple[int, ...]], tolerance: float | None, batch: int = 4, **settings: Any
) -> list[str]:
    given = {"new_tokens": 12, "stops": ["e", "ab"], "batch": Batch(batch)} | settings
    with torch.inference_mode():
        return generate(model, char_tokenizer(), asked, tolerance=tolerance, **given)


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_texts_are_the_plain_paths(model: PreTrainedModel, batch: int) -> None:
    asked = [*prompts(9), *prompts(5, prefix=60), *prompts(2, prefix=0), prompts(9)[0]]
    assert texts(model, asked, TOLERANCE, batch) == texts(model, asked, None, batch)


def test_the_beginning_is_computed_once(model: PreTrainedModel) -> None:
    asked = prompts(12)
    texts(model, asked, TOLERANCE)
    counted = Tokens(model)
    texts(model, asked, None, stops=[])
    plain = counted.stop()
    counted = Tokens(model)
    # Nothing is written again where any lead is enough.
    texts(model, asked, -1.0, stops=[])
    assert counted.stop() < plain / 3


def test_what_hangs_on_rounding_is_written_again(model: PreTrainedModel) -> None:
    asked = prompts(6)
    counted = Tokens(model)
    assert texts(model, asked, 1e6) == texts(model, asked, None)
    assert counted.stop() > 2 * sum(map(len, asked))


def test_bfloat16_repeats_nothing(tmp_path: Path) -> None:
    half = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path, 3), dtype=torch.bfloat16).eval()
    asked = prompts(8)
    texts(half, asked, TOLERANCE)
    counted = Tokens(half)
    texts(half, asked, 1e6, stops=[])
    assert counted.stop() < 120 + sum(len(each) - 120 for each in asked) * 3 + 12 * 8


def test_batches_have_room_and_only_a_devices_own_is_told() -> None:
    rows = [40, 40, 30, 20, 10, 10, 10, 10]
    for is_fixed, told in ((True, ""), (False, "memory of the device: batch 4 reduced to 2")):
        batch, room = Batch(4), Room(lambda: 100, is_fixed)
        parts = [list(part) for part, _ in batch.run(rows, len, cost=lambda row: row, room=room)]
        assert parts == [[40, 40], [30, 20, 10], [10, 10, 10]]
        assert batch.degraded == told
    alone = [list(part) for part, _ in Batch(4).run([200, 200], len, cost=lambda row: row, room=Room(lambda: 1, True))]
    assert alone == [[200], [200]]


def test_a_rows_bytes_grow_with_what_it_runs_and_keeps(model: PreTrainedModel) -> None:
    base = row_bytes(model, 100, 1)
    assert row_bytes(model, 200, 1) > base
    assert row_bytes(model, 100, 50) - base == 49 * model.config.vocab_size * (4 + 8)
    assert row_bytes(model, 100, 1, before=100) > base
    assert row_bytes(model.to(torch.bfloat16), 100, 1) < base
    model.to(torch.float32)
