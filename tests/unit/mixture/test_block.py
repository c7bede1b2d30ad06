"""Block-level mixtures and hybrids: closed cases, generation, and a folder that loads without us."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from glue.checkpoints.manifest import build_manifest
from glue.mixture.block import build_block_mixture
from glue.mixture.load import load_model
from glue.mixture.modeling_glue_block_mixture import GlueBlockMixtureForCausalLM
from glue.mixture.router import RouterWeights, layer_prototypes, pool_layer_states
from glue.mixture.writing import ExpertSource
from glue.specs.errors import IncompatibleModelsError
from tests.support.mixtures import padded, prompts, silent, tiny_mistral, tiny_qwen2
from tests.support.models import tiny_llama, tiny_neox, tiny_qwen3

Kind = Callable[..., Path]
LAYERS, WIDTH = 3, 16
KINDS = [tiny_llama, tiny_mistral, tiny_qwen2, tiny_qwen3, tiny_neox]
ROUNDING = {"rtol": 0, "atol": 2e-5}
LENGTH = {"max_new_tokens": 10, "min_new_tokens": 10}


def random_routers(decisions: int, experts: int, seed: int = 0) -> RouterWeights:
    generator = torch.Generator().manual_seed(seed)
    return RouterWeights(torch.randn(decisions, experts, WIDTH, generator=generator), torch.zeros(decisions, WIDTH))


def blocks(
    out: Path,
    folders: list[Path],
    *,
    base: Path | None = None,
    router: RouterWeights | None = None,
    dense_layers: int = 0,
    decide_once: bool = False,
    top_k: int = 1,
    dtype: str = "float32",
    shard_bytes: int = 1_000_000,
) -> Path:
    decisions = 1 if decide_once else LAYERS - dense_layers
    build_block_mixture(
        out,
        [ExpertSource(folder.name, folder) for folder in folders],
        router or random_routers(decisions, len(folders)),
        ExpertSource("base", base) if base else None,
        folders[0],
        dense_layers=dense_layers,
        decide_once=decide_once,
        top_k=top_k,
        dtype=dtype,
        shard_bytes=shard_bytes,
        token=1,
        progress=silent,
    )
    return out


def two(kind: Kind, root: Path) -> list[Path]:
    return [kind(root / name, seed=seed, num_hidden_layers=LAYERS) for seed, name in ((1, "a"), (2, "b"))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return two(tiny_llama, tmp_path_factory.mktemp("block"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, folders: list[Path]) -> Path:
    return blocks(tmp_path_factory.mktemp("block") / "mixture", folders)


@pytest.fixture(scope="module")
def model(built: Path) -> Any:
    return load_model(built, torch.float32, "cpu")


def loaded(folder: Path) -> Any:
    return load_model(folder, torch.float32, "cpu")


def mixed_by_hand(folders: list[Path], ids: Tensor, choice: list[int]) -> Tensor:
    """The logits of the first expert's trunk with each layer taken from the chosen expert."""
    experts = [loaded(folder) for folder in folders]
    for number, expert in enumerate(choice):
        experts[0].model.layers[number] = experts[expert].model.layers[number]
    with torch.no_grad():
        return experts[0](ids).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [1, 2])
def test_identical_experts_are_the_dense_model(kind: Kind, top_k: int, tmp_path: Path) -> None:
    dense = kind(tmp_path / "dense", num_hidden_layers=LAYERS)
    mixture = loaded(blocks(tmp_path / "mixture", [dense] * 3, top_k=top_k))
    ids = prompts(1, 20)
    with torch.no_grad():
        found, expected = mixture(ids).logits, loaded(dense)(ids).logits
    if top_k == 1:
        assert torch.equal(found, expected)
    else:
        torch.testing.assert_close(found, expected, **ROUNDING)


@torch.no_grad()
def test_each_layer_is_that_of_its_expert(folders: list[Path], tmp_path: Path) -> None:
    mixture = loaded(blocks(tmp_path / "mixture", folders, base=folders[0]))
    ids = prompts(1, 9)
    for choice in ([0, 1, 0], [1, 1, 0], [0, 0, 1]):
        routing = torch.eye(2)[choice][None]
        assert torch.equal(mixture(ids, routing=routing).logits, mixed_by_hand(folders, ids, choice))


@torch.no_grad()
def test_samples_of_a_batch_take_their_own_ways(model: Any) -> None:
    ids = prompts(12, 9)
    output = model(ids)
    assert output.routing.shape == (12, LAYERS, 2)
    assert len({tuple(way) for way in output.routing.argmax(-1).tolist()}) > 2
    for sample in range(12):
        one = model(ids[sample : sample + 1])
        assert torch.equal(one.routing, output.routing[sample : sample + 1])
        torch.testing.assert_close(one.logits[0], output.logits[sample], **ROUNDING)


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_padding_and_batch_mates_do_not_matter(model: Any, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    samples = [prompts(1, length, seed=data.draw(st.integers(0, 99)))[0] for length in lengths]
    ids, mask = padded(samples, data.draw(st.sampled_from(["left", "right"])))
    with torch.no_grad():
        together = model(ids, attention_mask=mask)
        for row, sample in enumerate(samples):
            one = model(sample[None])
            assert torch.equal(one.routing[0], together.routing[row])
            torch.testing.assert_close(one.logits[0], together.logits[row][mask[row].bool()], **ROUNDING)


@torch.no_grad()
def test_several_experts_give_the_weighted_mean_of_their_layers(folders: list[Path], tmp_path: Path) -> None:
    mixture = loaded(blocks(tmp_path / "mixture", folders, base=folders[0], dense_layers=2, top_k=2))
    ids = prompts(1, 9)
    weights = mixture(ids).routing[0, 0]
    assert 0 < weights[0] < 1
    first, second = loaded(folders[0]), loaded(folders[1])
    states = first(ids, output_hidden_states=True).hidden_states[2]
    arguments = {"position_embeddings": first.model.rotary_emb(states, torch.arange(9)[None])}
    outputs = [expert.model.layers[2](states, **arguments) for expert in (first, second)]
    mean = weights[0] * outputs[0] + weights[1] * outputs[1]
    torch.testing.assert_close(mixture(ids).logits, first.lm_head(first.model.norm(mean)), **ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("dense_layers", [0, 1, 2])
def test_a_hybrids_bottom_is_the_bases(folders: list[Path], dense_layers: int, tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", seed=7, num_hidden_layers=LAYERS)
    mixture = loaded(blocks(tmp_path / "mixture", folders, base=base, dense_layers=dense_layers))
    ids = prompts(1, 9)
    routing = torch.eye(2)[[1] * (LAYERS - dense_layers)][None]
    expected = mixed_by_hand([base, folders[1]], ids, [0] * dense_layers + [1] * (LAYERS - dense_layers))
    assert torch.equal(mixture(ids, routing=routing).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("dense_layers", [0, 2])
def test_one_decision_can_stand_for_all_layers(folders: list[Path], dense_layers: int, tmp_path: Path) -> None:
    out = blocks(tmp_path / "mixture", folders, base=folders[0], dense_layers=dense_layers, decide_once=True)
    mixture = loaded(out)
    ids = prompts(8, 9)
    output = mixture(ids)
    assert output.routing.shape == (8, 1, 2)
    assert set(output.routing.argmax(-1).flatten().tolist()) == {0, 1}
    for sample, (expert,) in enumerate(output.routing.argmax(-1).tolist()):
        one = ids[sample : sample + 1]
        choice = [0] * dense_layers + [expert] * (LAYERS - dense_layers)
        assert torch.equal(mixture(one).logits, mixed_by_hand(folders, one, choice))
    assert torch.equal(mixture.generate(ids, **LENGTH), mixture.generate(ids, **LENGTH, use_cache=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_cached_generation_equals_uncached(kind: Kind, way: dict[str, Any], tmp_path: Path) -> None:
    mixture = loaded(blocks(tmp_path / "mixture", two(kind, tmp_path)))
    ids = prompts(5, 12)
    answers = []
    for cache in (True, False):
        torch.manual_seed(3)
        answers.append(mixture.generate(ids, use_cache=cache, **way, **LENGTH))
    assert torch.equal(*answers)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("beams", [1, 3])
def test_padded_generation_equals_one_by_one(model: Any, side: str, beams: int) -> None:
    samples = [prompts(1, length, seed=length)[0] for length in (3, 9, 5, 8)]
    ids, mask = padded(samples, side)
    together = model.generate(ids, attention_mask=mask, num_beams=beams, **LENGTH)
    for row, sample in enumerate(samples):
        alone = model.generate(sample[None], num_beams=beams, **LENGTH)
        assert torch.equal(together[row, ids.shape[1] :], alone[0, len(sample) :])


def test_usage_counts_each_decision(built: Path) -> None:
    mixture: Any = loaded(built)
    routing = mixture.route(prompts(7, 6))
    assert mixture.expert_usage == routing.sum(0).long().tolist()


@torch.no_grad()
def test_router_logits_on_request(built: Path, model: Any) -> None:
    ids = prompts(5, 6)
    shown = model(ids, output_router_logits=True)
    assert shown.router_logits.shape == (5, LAYERS, 2)
    assert torch.equal(shown.router_logits.argmax(-1), shown.routing.argmax(-1))
    assert model(ids).router_logits is None
    # What is given was not decided.
    assert model(ids, routing=shown.routing, output_router_logits=True).router_logits is None
    always: Any = GlueBlockMixtureForCausalLM.from_pretrained(built, output_router_logits=True)
    assert torch.equal(always(ids).router_logits, shown.router_logits)


@torch.no_grad()
def test_all_experts_alike_are_the_mean_of_their_layers(folders: list[Path], tmp_path: Path) -> None:
    undecided = RouterWeights(torch.zeros(LAYERS, 2, WIDTH), torch.zeros(LAYERS, WIDTH))
    mixture = loaded(blocks(tmp_path / "mixture", folders, base=folders[0], router=undecided, top_k=2))
    ids = prompts(3, 7)
    experts = [loaded(folder).model for folder in folders]
    states = experts[0].embed_tokens(ids)
    place = experts[0].rotary_emb(states, torch.arange(7)[None])
    for first, second in zip(experts[0].layers, experts[1].layers, strict=True):
        states = (first(states, position_embeddings=place) + second(states, position_embeddings=place)) / 2
    expected = mixture.trunk.lm_head(experts[0].norm(states))
    torch.testing.assert_close(mixture(ids).logits, expected, **ROUNDING)


def test_a_device_map_keeps_layers_whole(built: Path, model: Any, tmp_path: Path) -> None:
    ids, mask = padded([prompts(1, length, seed=length)[0] for length in (3, 9, 5)], "left")
    placed: Any = GlueBlockMixtureForCausalLM.from_pretrained(built, device_map="auto")
    assert "LlamaDecoderLayer" in placed._no_split_modules
    # Experts of one layer in different places, some of them on the disk.
    rest = ("embed_tokens", "norm", "rotary_emb")
    apart = {f"trunk.model.{name}": "cpu" for name in rest} | {"trunk.lm_head": "cpu"}
    for layer in range(LAYERS):
        places = {"block_router": "cpu", "experts.0": "cpu", "experts.1": "disk"}
        apart |= {f"trunk.model.layers.{layer}.{name}": place for name, place in places.items()}
    spread: Any = GlueBlockMixtureForCausalLM.from_pretrained(built, device_map=apart, offload_folder=tmp_path)
    expected = model.generate(ids, attention_mask=mask, **LENGTH)
    for each in (placed, spread):
        assert torch.equal(each.generate(ids, attention_mask=mask, **LENGTH), expected)


def test_the_routing_of_the_prompt_is_kept(model: Any) -> None:
    ids = prompts(16, 4)
    answers = model.generate(ids, **LENGTH)
    before = model.route(ids)
    assert not torch.equal(model.route(answers), before), "no answer would be routed otherwise: nothing is shown"
    assert torch.equal(answers, model.generate(ids, routing=before, use_cache=False, **LENGTH))


def test_a_static_cache_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="dynamic"):
        model.generate(prompts(2, 5), cache_implementation="static", **LENGTH)


@pytest.mark.parametrize("way", [{"prefill_chunk_size": 4}, {"prompt_lookup_num_tokens": 3}])
def test_other_ways_to_generate(model: Any, way: dict[str, Any]) -> None:
    ids = prompts(1, 5).repeat(1, 3) if "prompt_lookup_num_tokens" in way else prompts(4, 11)
    assert torch.equal(model.generate(ids, **way, **LENGTH), model.generate(ids, **LENGTH))


@torch.no_grad()
def test_a_step_by_hand_continues_the_cache(model: Any) -> None:
    ids, mask = padded([prompts(1, length, seed=length)[0] for length in (5, 9, 7, 8)], "left")
    first = model(ids[:, :-2], attention_mask=mask[:, :-2])
    second = model(ids[:, -2:], attention_mask=mask, past_key_values=first.past_key_values)
    whole = model(ids, attention_mask=mask, routing=first.routing)
    torch.testing.assert_close(second.logits, whole.logits[:, -2:], **ROUNDING)
    cache = second.past_key_values
    assert cache.get_seq_length() == 9
    cache.crop(-4)
    cache.batch_repeat_interleave(2)
    assert (cache.get_seq_length(), len(cache.routing)) == (5, 8)
    cache.reset()
    assert cache.get_seq_length() == 0


def test_a_foreign_cache_is_refused(model: Any) -> None:
    with pytest.raises(TypeError, match="own cache"):
        model(prompts(1, 4), past_key_values=DynamicCache())


def test_a_training_step_with_checkpointing(built: Path) -> None:
    mixture: Any = loaded(built).train()
    mixture.activation_checkpointing_enable()
    ids = prompts(12, 9)
    mixture(ids, labels=ids, use_cache=False).loss.backward()
    layer = mixture.trunk.model.layers[1]
    assert all(expert.mlp.up_proj.weight.grad is not None for expert in layer.experts)
    assert [name for name, _ in layer.block_router.named_parameters()] == ["gate.weight"]


def test_the_folder_loads_as_remote_code_and_comes_back(built: Path, model: Any, tmp_path: Path) -> None:
    remote, findings = AutoModelForCausalLM.from_pretrained(built, trust_remote_code=True, output_loading_info=True)
    assert not any(findings.values())
    remote.save_pretrained(tmp_path / "again")
    again: Any = load_model(tmp_path / "again", torch.float32, "cpu")
    assert type(again) is GlueBlockMixtureForCausalLM
    ids = prompts(4, 8)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_routers_stay_in_single_precision(built: Path, model: Any) -> None:
    half: Any = load_model(built, torch.bfloat16, "cpu")
    router = half.trunk.model.layers[0].block_router
    assert {value.dtype for value in router.state_dict().values()} == {torch.float32}
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.route(prompts(6, 9))[:, 0], model.route(prompts(6, 9))[:, 0])


def test_tensors_come_from_where_they_should(built: Path, folders: list[Path]) -> None:
    tensors = load_file(built / "model.safetensors")
    sources = [load_file(folder / "model.safetensors") for folder in folders]
    name = "mlp.up_proj.weight"
    for expert, source in enumerate(sources):
        found = tensors[f"trunk.model.layers.2.experts.{expert}.{name}"]
        assert torch.equal(found, source[f"model.layers.2.{name}"])
    mean = (sources[0]["model.embed_tokens.weight"].double() + sources[1]["model.embed_tokens.weight"].double()) / 2
    assert torch.equal(tensors["trunk.model.embed_tokens.weight"], mean.float())
    assert torch.equal(tensors["trunk.lm_head.weight"], mean.float())
    config = json.loads((built / "config.json").read_text())
    assert (config["model_type"], config["expert_names"]) == ("glue_block_mixture", ["a", "b"])


def test_equal_inputs_give_equal_bytes_and_a_killed_build_goes_on(folders: list[Path], tmp_path: Path) -> None:
    before = build_manifest(blocks(tmp_path / "one", folders, shard_bytes=15_000))
    out = blocks(tmp_path / "two", folders, shard_bytes=15_000)
    assert build_manifest(out) == before
    sorted(out.glob("*.safetensors"))[1].unlink()
    assert build_manifest(blocks(out, folders, shard_bytes=15_000)) == before


def test_prototypes_of_layers_send_contexts_home(folders: list[Path], tmp_path: Path) -> None:
    # Contexts of one letter each; states of the base, which is the first expert, in all layers.
    base = loaded(folders[0])
    contexts = torch.tensor([[10] * 6, [10] * 6, [40] * 6, [40] * 6])
    router = layer_prototypes(pool_layer_states(base, contexts), [0, 0, 1, 1], 2)
    assert router.weight.shape == (LAYERS, 2, WIDTH)
    mixture = loaded(blocks(tmp_path / "mixture", [folders[0]] * 2, base=folders[0], router=router))
    assert mixture.route(contexts).argmax(-1).tolist() == [[0] * 3, [0] * 3, [1] * 3, [1] * 3]


def test_what_cannot_stand_side_by_side_is_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(IncompatibleModelsError, match="differ in architecture"):
        blocks(tmp_path / "m", [folders[0], tiny_qwen3(tmp_path / "q", num_hidden_layers=LAYERS)])
    with pytest.raises(ValueError, match="router of shape"):
        blocks(tmp_path / "m", folders, router=random_routers(1, 2))
    with pytest.raises(ValueError, match="can be dense"):
        blocks(tmp_path / "m", folders, dense_layers=3, router=random_routers(1, 2))
    with pytest.raises(ValueError, match="1 to 2"):
        blocks(tmp_path / "m", folders, top_k=3)
