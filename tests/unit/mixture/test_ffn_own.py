"""FFN-level mixtures by our modelling file: closed cases, both inputs, architectures that no stock mixture fits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from glue.checkpoints.manifest import build_manifest
from glue.mixture.ffn_own import build_own_ffn_mixture
from glue.mixture.gates import random_gates
from glue.mixture.load import load_model
from glue.mixture.router import InnerLayer, RouterWeights
from glue.mixture.sources import ExpertSource, SharedExperts
from glue.specs.errors import IncompatibleModelsError
from tests.support.mixtures import padded, prompts, silent, tiny_qwen2
from tests.support.models import VOCABULARY, tiny_llama, tiny_neox, tiny_tokenizer

Kind = Callable[..., Path]
LAYERS, WIDTH = 2, 16
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}
INPUTS = [pytest.param(False, id="tokens"), pytest.param(True, id="samples")]


def _other(folder: Path, seed: int, kind: Any, config: Any) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind(config).save_pretrained(folder)
    tiny_tokenizer(folder)
    return folder


def tiny_gpt2(folder: Path, seed: int = 0) -> Path:
    shape = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 256, "initializer_range": 0.3}
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    return _other(folder, seed, GPT2LMHeadModel, GPT2Config(vocab_size=len(VOCABULARY), **shape, **ids))


def tiny_gemma2(folder: Path, seed: int = 0) -> Path:
    shape = {
        "vocab_size": len(VOCABULARY), "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8,
        "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
    }  # fmt: skip
    return _other(folder, seed, Gemma2ForCausalLM, Gemma2Config(**shape))


KINDS = [
    pytest.param(tiny_llama, id="llama"),
    pytest.param(tiny_neox, id="neox"),
    pytest.param(tiny_qwen2, id="qwen2"),
    pytest.param(tiny_gpt2, id="gpt2"),
    pytest.param(tiny_gemma2, id="gemma2"),
]
MLP_KINDS = [pytest.param(tiny_llama, "down_proj", id="llama"), pytest.param(tiny_neox, "4h_to_h", id="neox")]


def random_routers(experts: int, decisions: int = LAYERS, seed: int = 5, inner: int = 0) -> RouterWeights:
    centre = torch.zeros(decisions, WIDTH)
    if not inner:
        return RouterWeights(random_gates(decisions, experts, WIDTH, seed), centre)
    first = InnerLayer(random_gates(decisions, inner, WIDTH, seed), torch.randn(decisions, inner))
    return RouterWeights(random_gates(decisions, experts, inner, seed), centre, first)


def mixed(
    out: Path,
    folders: list[Path],
    router: RouterWeights | None = None,
    *,
    base: Path | None = None,
    top_k: int = 2,
    dtype: str = "float32",
    shard_bytes: int = 1_000_000,
    **settings: Any,
) -> Path:
    build_own_ffn_mixture(
        out,
        [ExpertSource(folder.name, folder) for folder in folders],
        router or random_routers(len(folders), LAYERS - settings.get("dense_layers", 0)),
        ExpertSource("base", base) if base else None,
        folders[0],
        top_k=top_k,
        dtype=dtype,
        shard_bytes=shard_bytes,
        token=1,
        progress=silent,
        **settings,
    )
    return out


def loaded(folder: Path) -> Any:
    return load_model(folder, torch.float32, "cpu")


@torch.no_grad()
def logits(folder: Path, ids: Tensor, **inputs: Any) -> Tensor:
    return loaded(folder)(ids, **inputs).logits  # type: ignore[no-any-return]


def edited(folder: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    changed = {name: change(name, value).contiguous() for name, value in tensors.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("samples", INPUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_identical_experts_are_the_dense_model(kind: Kind, samples: bool, tmp_path: Path) -> None:
    dense = kind(tmp_path / "dense")
    ids = prompts(3, 20)
    for inner in (0, 4):
        folder = mixed(
            tmp_path / f"mixture{inner}", [dense] * 3, random_routers(3, inner=inner), routes_samples=samples
        )
        torch.testing.assert_close(logits(folder, ids), logits(dense, ids), **ROUNDING)


@pytest.mark.parametrize("samples", INPUTS)
@pytest.mark.parametrize("kind", [tiny_llama, tiny_neox])
def test_a_router_that_always_chooses_one_gives_its_mlps_on_the_base(kind: Kind, samples: bool, tmp_path: Path) -> None:
    base, first, second = (kind(tmp_path / name, seed=seed) for seed, name in enumerate(("base", "a", "b")))
    # Equal logits everywhere: the first of equals is asked.
    router = RouterWeights(torch.zeros(LAYERS, 2, WIDTH), torch.zeros(LAYERS, WIDTH))
    folder = mixed(tmp_path / "m", [second, first], router, base=base, top_k=1, routes_samples=samples)
    mlps = load_file(second / "model.safetensors")
    expected = edited(base, lambda name, value: mlps[name] if ".mlp." in name else value)
    ids = prompts(3, 20)
    assert torch.equal(logits(folder, ids), logits(expected, ids))


@pytest.mark.parametrize("samples", INPUTS)
@pytest.mark.parametrize(("kind", "last"), MLP_KINDS)
def test_a_uniform_router_over_all_is_the_mean_of_the_mlps(
    kind: Kind, last: str, samples: bool, tmp_path: Path
) -> None:
    def scaled(factor: float) -> Callable[[str, Tensor], Tensor]:
        return lambda name, value: value * factor if last in name else value

    base = kind(tmp_path / "base")
    folders = [edited(kind(tmp_path / name), scaled(factor)) for name, factor in (("a", 0.5), ("b", 2.0))]
    router = RouterWeights(torch.zeros(LAYERS, 2, WIDTH), torch.zeros(LAYERS, WIDTH))
    folder = mixed(tmp_path / "m", folders, router, base=base, routes_samples=samples)
    ids = prompts(3, 20)
    # An MLP is linear in its last layer: the mean of the outputs is that of the mean of these.
    torch.testing.assert_close(logits(folder, ids), logits(edited(base, scaled(1.25)), ids), **ROUNDING)


@pytest.mark.parametrize("samples", INPUTS)
@pytest.mark.parametrize("dense", [0, 1, 2])
def test_a_hybrids_bottom_is_the_bases(samples: bool, dense: int, tmp_path: Path) -> None:
    base, expert = tiny_llama(tmp_path / "base", seed=1), tiny_llama(tmp_path / "a", seed=2)
    folder = mixed(tmp_path / "m", [expert] * 2, base=base, dense_layers=dense, routes_samples=samples)
    mlps = load_file(expert / "model.safetensors")
    routed = tuple(f"layers.{layer}.mlp." for layer in range(dense, LAYERS))
    expected = edited(base, lambda name, value: mlps[name] if any(part in name for part in routed) else value)
    ids = prompts(3, 20)
    torch.testing.assert_close(logits(folder, ids), logits(expected, ids), **ROUNDING)
    answers = loaded(folder).generate(ids, max_new_tokens=4, min_new_tokens=4)
    assert torch.equal(answers, loaded(expected).generate(ids, max_new_tokens=4, min_new_tokens=4))


@pytest.mark.parametrize("samples", INPUTS)
def test_shared_experts_answer_beside_the_chosen(samples: bool, tmp_path: Path) -> None:
    base, zero = tiny_llama(tmp_path / "base", seed=1), tiny_llama(tmp_path / "zero", seed=1)
    edited(zero, lambda name, value: value * 0 if "down_proj" in name else value)
    shared = ExpertSource("shared", base)
    ids = prompts(3, 20)
    beside = mixed(tmp_path / "m", [zero] * 2, base=base, routes_samples=samples, shared=SharedExperts((shared,)))
    torch.testing.assert_close(logits(beside, ids), logits(base, ids), **ROUNDING)
    # A gate of zeros lets half of each of two through.
    gated = SharedExperts((shared, shared), torch.zeros(LAYERS, 2, WIDTH))
    halves = mixed(tmp_path / "n", [zero] * 2, base=base, routes_samples=samples, shared=gated)
    torch.testing.assert_close(logits(halves, ids), logits(base, ids), **ROUNDING)


@pytest.fixture(scope="module", params=INPUTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A mixture of three Llamas of which each layer asks two."""
    root = tmp_path_factory.mktemp("ffn")
    folders = [tiny_llama(root / name, seed=seed) for seed, name in enumerate("abc")]
    return loaded(mixed(root / "m", folders, routes_samples=request.param, base=folders[0]))


@pytest.mark.parametrize(
    "way",
    [
        pytest.param({}, id="greedy"),
        pytest.param({"do_sample": True, "top_k": 20}, id="sampling"),
        pytest.param({"num_beams": 4, "num_return_sequences": 2}, id="beams"),
        pytest.param({"cache_implementation": "static"}, id="static"),
    ],
)
def test_cached_generation_equals_uncached(model: Any, way: dict[str, Any]) -> None:
    ids, length = prompts(5, 9), {"max_new_tokens": 10, "min_new_tokens": 10}
    torch.manual_seed(3)
    cached = model.generate(ids, **length, **way)
    way = {name: value for name, value in way.items() if name != "cache_implementation"}
    torch.manual_seed(3)
    assert torch.equal(cached, model.generate(ids, **length, **way, use_cache=False))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_its_samples_one_by_one(model: Any, side: str) -> None:
    samples = [prompts(1, length, seed=length)[0] for length in (3, 12, 5, 8)]
    ids, mask = padded(samples, side)
    length = {"max_new_tokens": 8, "min_new_tokens": 8}
    with torch.no_grad():
        together = model(ids, mask).logits
        for row, sample in enumerate(samples):
            alone = model(sample[None]).logits[0]
            torch.testing.assert_close(together[row][mask[row].bool()], alone, **ROUNDING)
    if side == "left" or hasattr(model, "route"):
        answers = model.generate(ids, attention_mask=mask, **length)
        for row, sample in enumerate(samples):
            alone = model.generate(sample[None], **length)[0, len(sample) :]
            assert torch.equal(answers[row, ids.shape[1] :], alone)


@torch.no_grad()
def test_a_batch_mate_changes_nothing(model: Any) -> None:
    ids = prompts(6, 11)
    together = model(ids)
    for row, sample in enumerate(ids):
        alone = model(sample[None])
        torch.testing.assert_close(together.logits[row], alone.logits[0], rtol=1e-5, atol=1e-5)
        if together.routing is not None:
            torch.testing.assert_close(together.routing[row], alone.routing[0])


@torch.no_grad()
def test_the_routing_of_a_prompt_stays(tmp_path: Path) -> None:
    folders = [tiny_llama(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    model = loaded(mixed(tmp_path / "m", folders, routes_samples=True, top_k=1))
    ids = prompts(4, 9)
    first = model(ids)
    assert torch.equal(first.routing, model.route(ids))
    assert first.routing.shape == (4, LAYERS, 2)
    more = prompts(4, 3, seed=8)
    continued = model(more, past_key_values=first.past_key_values)
    given = model(torch.cat([ids, more], 1), routing=first.routing)
    torch.testing.assert_close(continued.logits, given.logits[:, 9:], **ROUNDING)
    del first.past_key_values.routing
    with pytest.raises(ValueError, match="does not know its routing"):
        model(more, past_key_values=first.past_key_values)


def test_tokens_have_no_routing_to_give(tmp_path: Path) -> None:
    model = loaded(mixed(tmp_path / "m", [tiny_llama(tmp_path / "a")] * 2))
    assert not hasattr(model, "route")
    with pytest.raises(ValueError, match="every token is routed by itself"):
        model(prompts(1, 4), routing=torch.ones(1, LAYERS, 2))


@torch.no_grad()
def test_usage_counts_what_is_no_padding(model: Any) -> None:
    before = [sum(layer) for layer in model.expert_usage]
    ids, mask = padded([prompts(1, length, seed=length)[0] for length in (3, 7)], "left")
    output = model(ids, mask, output_router_logits=True)
    asked = 2 * (2 if hasattr(model, "route") else 10)
    assert [sum(layer) for layer in model.expert_usage] == [count + asked for count in before]
    rows = 2 if hasattr(model, "route") else 14
    assert [tuple(each.shape) for each in output.router_logits] == [(rows, 3)] * LAYERS
    assert model(ids, mask).router_logits is None


def test_gradient_checkpointing_gives_the_same_gradients(model: Any) -> None:
    ids, mask = padded([prompts(1, length, seed=length)[0] for length in (3, 7)], "left")
    gradients = []
    for checkpointed in (False, True):
        model.train()
        if checkpointed:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        before = [list(layer) for layer in model.expert_usage]
        loss = model(ids, mask, labels=ids, use_cache=False).loss
        usage = [list(layer) for layer in model.expert_usage]
        model(prompts(2, 5), use_cache=False)
        after = [list(layer) for layer in model.expert_usage]
        loss.backward()
        assert usage != before
        assert model.expert_usage == after
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
        model.zero_grad()
    model.activation_checkpointing_disable()
    model.eval()
    assert gradients[0].keys() == gradients[1].keys()
    assert any("ffn_router" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_hidden_states_are_shown(model: Any) -> None:
    output = model(prompts(2, 5), output_hidden_states=True)
    assert len(output.hidden_states) == LAYERS + 1
    assert isinstance(model(prompts(2, 5), return_dict=False), tuple)


def test_it_is_spread_over_devices(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    kind = type(model)
    spread = kind.from_pretrained(tmp_path / "saved", device_map="auto", max_memory={"cpu": "1GB"})
    ids = prompts(2, 6)
    with torch.no_grad():
        assert torch.equal(spread(ids).logits, model(ids).logits)


def test_equal_inputs_give_equal_bytes_and_a_killed_build_goes_on(tmp_path: Path) -> None:
    folders = [tiny_neox(tmp_path / "a", seed=1), tiny_neox(tmp_path / "b", seed=2)]
    before = build_manifest(mixed(tmp_path / "one", folders, shard_bytes=10_000))
    two = mixed(tmp_path / "two", folders, shard_bytes=10_000)
    assert build_manifest(two) == before
    sorted(two.glob("*.safetensors"))[1].unlink()
    assert build_manifest(mixed(two, folders, shard_bytes=10_000)) == before


def test_half_precision_leaves_routers_as_they_are(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "m", [tiny_llama(tmp_path / "a")] * 2, dtype="bfloat16", routes_samples=True)
    model: Any = load_model(folder, torch.bfloat16, "cpu")
    kept = {value.dtype for name, value in model.named_parameters() if "ffn_router" in name}
    assert kept == {torch.float32}
    assert model(prompts(1, 5)).logits.dtype == torch.bfloat16


def test_layers_without_an_mlp_of_their_own_are_refused(tmp_path: Path) -> None:
    shape = {"hidden_size": WIDTH, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = OPTConfig(vocab_size=len(VOCABULARY), word_embed_proj_dim=WIDTH, **shape)
    opt = _other(tmp_path / "opt", 0, OPTForCausalLM, config)
    with pytest.raises(IncompatibleModelsError, match="no MLP that takes states alone"):
        mixed(tmp_path / "m", [opt, opt])


def test_models_that_do_not_fit_and_numbers_are_refused(tmp_path: Path) -> None:
    llama = tiny_llama(tmp_path / "a")
    with pytest.raises(IncompatibleModelsError, match="differ in architecture"):
        mixed(tmp_path / "m", [llama, tiny_llama(tmp_path / "wide", intermediate_size=48)])
    with pytest.raises(ValueError, match=r"\(2, 2, 16\)"):
        mixed(tmp_path / "m", [llama, llama], random_routers(2, 1))
    with pytest.raises(ValueError, match="1 to 2"):
        mixed(tmp_path / "m", [llama, llama], top_k=3)
