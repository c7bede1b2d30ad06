"""`generate`: the routing of the prompt stays, the cache changes nothing, padding changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from glue.mixture.load import load_model
from tests.support.mixtures import mix, padded, prompts
from tests.support.models import tiny_qwen3

NEW = 14
LENGTH = {"max_new_tokens": NEW, "min_new_tokens": NEW}
WAYS = [
    pytest.param({}, id="greedy"),
    pytest.param({"do_sample": True, "top_k": 20}, id="sampling"),
    pytest.param({"do_sample": True, "num_return_sequences": 3}, id="several samples"),
    pytest.param({"num_beams": 3}, id="beams"),
    pytest.param({"num_beams": 4, "num_return_sequences": 2}, id="several beams"),
    pytest.param({"num_beams": 2, "do_sample": True}, id="sampled beams"),
]


def generated(model: Any, ids: Tensor, **settings: Any) -> Tensor:
    torch.manual_seed(11)
    return model.generate(ids, **LENGTH, **settings)


@pytest.mark.parametrize("way", WAYS)
def test_cached_equals_uncached(model: Any, way: dict[str, Any]) -> None:
    ids = prompts(6, 9)
    assert torch.equal(generated(model, ids, **way), generated(model, ids, use_cache=False, **way))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("expert", [0, 1, 2])
def test_a_sample_is_answered_as_by_its_expert(
    model: Any, alone: list[PreTrainedModel], expert: int, way: dict[str, Any]
) -> None:
    ids = prompts(12, 9)
    ids = ids[model.route(ids).argmax(-1) == expert][:1]
    assert torch.equal(generated(model, ids, **way), generated(alone[expert], ids, **way))


@pytest.mark.parametrize("way", [WAYS[0], WAYS[3], WAYS[4]])
def test_batch_mates_change_nothing(model: Any, way: dict[str, Any]) -> None:
    ids = prompts(6, 9)
    together = generated(model, ids, **way)
    apart = [generated(model, one[None], **way) for one in ids]
    assert torch.equal(together, torch.cat(apart))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("way", [WAYS[0], WAYS[3]])
def test_padding_changes_nothing(model: Any, side: str, way: dict[str, Any]) -> None:
    samples = [prompts(1, length, seed=length)[0] for length in (3, 12, 5, 8, 12, 4)]
    ids, mask = padded(samples, side)
    together = generated(model, ids, attention_mask=mask, **way)
    for row, sample in enumerate(samples):
        alone = generated(model, sample[None], **way)
        assert torch.equal(together[row, ids.shape[1] :], alone[0, len(sample) :])
        # The prompt comes back, padded on the left.
        assert torch.equal(together[row, ids.shape[1] - len(sample) : ids.shape[1]], sample)


def test_the_mask_is_found_without_being_given(model: Any) -> None:
    samples = [prompts(1, length, seed=length)[0] for length in (4, 9)]
    ids, mask = padded(samples, "left")
    assert torch.equal(generated(model, ids), generated(model, ids, attention_mask=mask))


def test_the_routing_of_the_prompt_is_kept(model: Any, alone: list[PreTrainedModel]) -> None:
    ids = prompts(12, 4)
    before = model.route(ids).argmax(-1)
    answers = generated(model, ids)
    changed = (model.route(answers).argmax(-1) != before).nonzero().squeeze(-1).tolist()
    assert changed, "no answer would be routed elsewhere than its prompt: the test shows nothing"
    for sample in changed:
        expected = generated(alone[before[sample]], ids[sample : sample + 1])
        assert torch.equal(answers[sample : sample + 1], expected)


def test_routing_can_be_given_to_generate(model: Any, alone: list[PreTrainedModel]) -> None:
    ids = prompts(3, 6)
    answers = generated(model, ids, routing=torch.eye(3)[[1, 1, 2]])
    for sample, expert in enumerate([1, 1, 2]):
        assert torch.equal(answers[sample : sample + 1], generated(alone[expert], ids[sample : sample + 1]))


@torch.no_grad()
def test_a_conversation_goes_on_with_its_cache(model: Any) -> None:
    ids = prompts(4, 7)
    first = model.generate(ids, return_dict_in_generate=True, **LENGTH)
    longer = torch.cat([first.sequences, prompts(4, 3, seed=5)], dim=1)
    routing = model.route(ids)
    continued = model.generate(longer, past_key_values=first.past_key_values, **LENGTH)
    assert torch.equal(continued, model.generate(longer, routing=routing, **LENGTH))


@torch.no_grad()
def test_a_step_by_hand_continues_the_cache(model: Any) -> None:
    ids, mask = padded([prompts(1, length, seed=length)[0] for length in (5, 9, 7, 8)], "left")
    first = model(ids[:, :-2], attention_mask=mask[:, :-2], use_cache=True)
    second = model(ids[:, -2:], attention_mask=mask, past_key_values=first.past_key_values)
    whole = model(ids, attention_mask=mask, routing=first.routing)
    torch.testing.assert_close(second.logits, whole.logits[:, -2:], rtol=0, atol=1e-5)
    assert torch.equal(second.routing, first.routing)


def test_prompt_lookup_rolls_the_cache_back(model: Any) -> None:
    ids = prompts(1, 4).repeat(1, 4)
    assert torch.equal(generated(model, ids, prompt_lookup_num_tokens=3), generated(model, ids))


@pytest.mark.parametrize("beams", [1, 3])
def test_a_static_cache_works_as_well(model: Any, beams: int) -> None:
    ids = prompts(5, 8)
    found = generated(model, ids, cache_implementation="static", num_beams=beams)
    assert torch.equal(found, generated(model, ids, num_beams=beams))


def test_chunked_prefill_keeps_the_routing(model: Any) -> None:
    ids = prompts(5, 11)
    assert torch.equal(generated(model, ids, prefill_chunk_size=4), generated(model, ids))


def test_a_sliding_window_slides_in_its_expert_alone(tmp_path: Path) -> None:
    window = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}
    folders = [tiny_qwen3(tmp_path / "a", seed=1, **window), tiny_qwen3(tmp_path / "b", seed=2)]
    model: Any = load_model(mix(tmp_path / "mixture", folders), torch.float32, "cpu")
    ids = prompts(4, 10)
    for expert, folder in enumerate(folders):
        routing = torch.eye(2)[[expert] * 4]
        alone: Any = load_model(folder, torch.float32, "cpu")
        assert torch.equal(generated(model, ids, routing=routing), generated(alone, ids))


def test_the_cache_can_be_repeated_and_emptied(model: Any) -> None:
    ids = prompts(4, 6)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        routing = cache.routing
        cache.batch_repeat_interleave(2)
        assert torch.equal(cache.routing, routing.repeat_interleave(2, dim=0))
        again = model(ids.repeat_interleave(2, dim=0)[:, :1], past_key_values=cache)
    assert again.logits.shape[0] == 8
    assert cache.get_seq_length() == 7
    cache.crop(-3)
    assert cache.get_seq_length() == 4
    assert not cache.is_compileable
    cache.reset()
    assert cache.get_seq_length() == 0
