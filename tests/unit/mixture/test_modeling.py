"""The mixture as a model: its logits are its experts', and routing depends on the prompt alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from glue.mixture.load import load_model
from glue.mixture.modeling_glue_model_mixture import GlueModelMixtureForCausalLM
from glue.mixture.router import RouterWeights
from tests.support.mixtures import MixtureFolders, mix, padded, prompts, random_router
from tests.support.models import VOCABULARY, tiny_llama, tiny_neox

# Matrix products of another shape, and attention with a mask, round differently in fp32.
ROUNDING = {"rtol": 0, "atol": 1e-5}


def chosen(routing: Tensor) -> list[int]:
    """The expert of each sample, where each asks one."""
    assert torch.equal(routing.sum(-1), torch.ones(len(routing)))
    assert torch.equal(routing.count_nonzero(-1), torch.ones(len(routing), dtype=torch.long))
    return routing.argmax(-1).tolist()


@torch.no_grad()
def test_a_sample_gets_exactly_its_experts_logits(model: Any, alone: list[PreTrainedModel]) -> None:
    ids = prompts(24, 11)
    output = model(ids)
    experts = chosen(output.routing)
    assert set(experts) == {0, 1, 2}
    for sample, expert in enumerate(experts):
        one = ids[sample : sample + 1]
        assert torch.equal(model(one).logits, alone[expert](one).logits)
        torch.testing.assert_close(output.logits[sample : sample + 1], alone[expert](one).logits, **ROUNDING)


@torch.no_grad()
def test_the_logits_of_a_group_are_the_experts_on_that_group(model: Any, alone: list[PreTrainedModel]) -> None:
    ids, mask = padded([prompts(1, length, seed=length)[0] for length in range(3, 20)], "left")
    output = model(ids, attention_mask=mask)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for expert, group in enumerate(output.routing.unbind(-1)):
        rows = group.nonzero().squeeze(-1)
        expected = alone[expert](ids[rows], attention_mask=mask[rows], position_ids=positions[rows])
        assert torch.equal(output.logits[rows], expected.logits)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_its_samples(model: Any, side: str) -> None:
    samples = [prompts(1, length, seed=length)[0] for length in range(2, 16)]
    ids, mask = padded(samples, side)
    output = model(ids, attention_mask=mask)
    for row, sample in enumerate(samples):
        one = model(sample[None])
        assert torch.equal(output.routing[row : row + 1], one.routing)
        torch.testing.assert_close(output.logits[row][mask[row].bool()], one.logits[0], **ROUNDING)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_routing_ignores_padding_and_batch_mates(model: Any, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    samples = [prompts(1, length, seed=data.draw(st.integers(0, 99)))[0] for length in lengths]
    ids, mask = padded(samples, data.draw(st.sampled_from(["left", "right"])))
    together = model.sample_router(ids, mask)
    apart = torch.cat([model.sample_router(sample[None]) for sample in samples])
    assert torch.equal(together, apart)
    assert torch.equal(model.route(ids, mask), model._choose(apart))


@torch.no_grad()
def test_routing_can_be_given(model: Any, alone: list[PreTrainedModel]) -> None:
    ids = prompts(3, 7)
    output = model(ids, routing=torch.eye(3)[[2, 0, 1]])
    for sample, expert in enumerate([2, 0, 1]):
        assert torch.equal(output.logits[sample], alone[expert](ids[sample : sample + 1]).logits[0])


@torch.no_grad()
def test_only_the_last_logits_on_request(model: Any) -> None:
    ids = prompts(6, 9)
    everything = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, everything[:, -2:], **ROUNDING)
    picked = model(ids, logits_to_keep=torch.tensor([0, 4])).logits
    torch.testing.assert_close(picked, everything[:, [0, 4]], **ROUNDING)


@torch.no_grad()
def test_router_logits_on_request(model: Any) -> None:
    ids = prompts(4, 6)
    assert model(ids).router_logits is None
    output = model(ids, output_router_logits=True)
    assert torch.equal(output.router_logits, model.sample_router(ids))
    assert torch.equal(output.router_logits.argmax(-1), output.routing.argmax(-1))


@torch.no_grad()
def test_a_tuple_on_request(model: Any) -> None:
    ids = prompts(2, 5)
    assert torch.equal(model(ids, return_dict=False)[0], model(ids).logits)


@torch.no_grad()
def test_the_loss_is_the_experts_loss(model: Any, alone: list[PreTrainedModel]) -> None:
    ids = prompts(1, 12)
    output = model(ids, labels=ids)
    assert torch.equal(output.loss, alone[chosen(output.routing)[0]](ids, labels=ids).loss)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), top_k=st.integers(1, 3))
def test_identical_experts_are_the_dense_model_for_any_router(
    tmp_path_factory: pytest.TempPathFactory, seed: int, top_k: int
) -> None:
    root = tmp_path_factory.mktemp("same")
    dense = tiny_llama(root / "dense")
    folder = mix(root / "mixture", [dense] * 3, random_router(3, seed), top_k=top_k)
    ids = prompts(5, 8, seed)
    with torch.no_grad():
        found = load_model(folder, torch.float32, "cpu")(ids).logits
        expected = load_model(dense, torch.float32, "cpu")(ids).logits
    if top_k == 1:
        assert torch.equal(found, expected)
    else:
        torch.testing.assert_close(found, expected.log_softmax(-1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_several_experts_mix_probabilities(built: MixtureFolders, alone: list[PreTrainedModel], tmp_path: Path) -> None:
    model: Any = load_model(mix(tmp_path / "two", built.experts, top_k=2), torch.float32, "cpu")
    ids = prompts(8, 6)
    output = model(ids, output_router_logits=True)
    top, experts = output.router_logits.softmax(-1).topk(2)
    weights = top / top.sum(-1, keepdim=True)
    for sample in range(len(ids)):
        answers = [alone[expert](ids[sample : sample + 1]).logits[0].softmax(-1) for expert in experts[sample]]
        expected = sum(weight * answer for weight, answer in zip(weights[sample], answers, strict=True))
        torch.testing.assert_close(output.logits[sample].exp(), expected, rtol=1e-4, atol=1e-6)
    cached = model.generate(ids, max_new_tokens=6, min_new_tokens=6)
    assert torch.equal(cached, model.generate(ids, max_new_tokens=6, min_new_tokens=6, use_cache=False))


@torch.no_grad()
def test_experts_may_pad_their_vocabulary_differently(tmp_path: Path) -> None:
    rows = len(VOCABULARY)
    folders = [tiny_llama(tmp_path / "a"), tiny_neox(tmp_path / "b", vocab_size=rows + 5)]
    model: Any = load_model(mix(tmp_path / "mixture", folders), torch.float32, "cpu")
    ids = prompts(2, 5)
    logits = model(ids, routing=torch.eye(2)).logits
    assert logits.shape[-1] == rows + 5
    assert torch.equal(logits[0, :, :rows], load_model(folders[0], torch.float32, "cpu")(ids[:1]).logits[0])
    assert (logits[0, :, rows:].softmax(-1) > 0).all()
    assert (logits[0].softmax(-1)[:, rows:] == 0).all()
    assert torch.isfinite(model(ids, labels=ids, routing=torch.eye(2)).loss)


@torch.no_grad()
def test_the_router_stays_in_single_precision(built: MixtureFolders, model: Any) -> None:
    half: Any = load_model(built.folder, torch.bfloat16, "cpu")
    ids = prompts(16, 9)
    assert half.dtype == torch.bfloat16
    assert {value.dtype for value in half.sample_router.state_dict().values()} == {torch.float32}
    assert torch.equal(half.route(ids), model.route(ids))
    assert half(ids).logits.dtype == torch.bfloat16


def test_usage_counts_each_sample_once(built: MixtureFolders) -> None:
    model: Any = load_model(built.folder, torch.float32, "cpu")
    assert model.expert_usage == [0, 0, 0]
    ids = prompts(10, 6)
    routing = model(ids).routing
    assert model.expert_usage == routing.sum(0).long().tolist()
    model.generate(ids, max_new_tokens=4, num_beams=2)
    assert sum(model.expert_usage) == 20


def test_ties_go_to_the_first_expert(built: MixtureFolders, tmp_path: Path) -> None:
    equal = RouterWeights(torch.ones(3, 16), torch.zeros(16))
    model: Any = load_model(mix(tmp_path / "mixture", built.experts, equal), torch.float32, "cpu")
    assert chosen(model.route(prompts(5, 4))) == [0] * 5


def gradients(folder: Path, enable: str = "") -> dict[str, Tensor]:
    model: Any = load_model(folder, torch.float32, "cpu").train()
    if enable:
        getattr(model, enable)()
        assert all(expert.is_gradient_checkpointing for expert in model.experts)
    ids = prompts(8, 9)
    model(ids, labels=ids, use_cache=False).loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("enable", ["gradient_checkpointing_enable", "activation_checkpointing_enable"])
def test_checkpointed_gradients_are_the_same(built: MixtureFolders, enable: str) -> None:
    plain, checkpointed = gradients(built.folder), gradients(built.folder, enable)
    assert {name.split(".")[1] for name in plain} == {"0", "1", "2"}
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(value, checkpointed[name]) for name, value in plain.items())


def test_a_foreign_cache_is_refused(model: Any) -> None:
    with pytest.raises(TypeError, match="own cache"):
        model(prompts(1, 4), past_key_values=DynamicCache())


def test_a_saved_mixture_is_the_same_mixture(built: MixtureFolders, model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "again")
    again: Any = load_model(tmp_path / "again", torch.float32, "cpu")
    ids = prompts(4, 8)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.config.to_dict()["experts"] == model.config.to_dict()["experts"]
    name = "modeling_glue_model_mixture.py"
    assert (tmp_path / "again" / name).read_bytes() == (built.folder / name).read_bytes()


def test_a_device_map_keeps_layers_whole(built: MixtureFolders, model: Any) -> None:
    placed = GlueModelMixtureForCausalLM.from_pretrained(built.folder, device_map="auto")
    assert {"LlamaDecoderLayer", "GPTNeoXLayer", "Qwen3DecoderLayer"} <= set(placed._no_split_modules)
    ids = prompts(3, 6)
    with torch.no_grad():
        assert torch.equal(placed(ids).logits, model(ids).logits)


@torch.no_grad()
def test_an_expert_may_lie_on_the_disk(built: MixtureFolders, model: Any, tmp_path: Path) -> None:
    places = {"sample_router": "cpu", "experts.0": "cpu", "experts.1": "disk", "experts.2": "disk"}
    placed = GlueModelMixtureForCausalLM.from_pretrained(built.folder, device_map=places, offload_folder=tmp_path)
    assert placed.experts[1].get_input_embeddings().weight.device.type == "meta"
    ids = prompts(12, 6)
    assert set(chosen(placed.route(ids))) == {0, 1, 2}
    assert torch.equal(placed(ids).logits, model(ids).logits)
    length = {"max_new_tokens": 5, "min_new_tokens": 5}
    assert torch.equal(placed.generate(ids, **length), model.generate(ids, **length))


@torch.no_grad()
def test_attention_is_chosen_for_all_experts(built: MixtureFolders, model: Any) -> None:
    eager = GlueModelMixtureForCausalLM.from_pretrained(built.folder, attn_implementation="eager")
    assert {expert.config._attn_implementation for expert in eager.experts} == {"eager"}
    ids = prompts(3, 6)
    torch.testing.assert_close(eager(ids).logits, model(ids).logits, **ROUNDING)
