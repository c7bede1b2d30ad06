"""Weight matching on models with the symmetries of Llama, and the merge by it."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from glue.checkpoints.reader import Checkpoint
from glue.merging.engine import evaluate, merge_into, merge_to_folder
from glue.merging.preflight import preflight_file
from glue.merging.symmetries import Symmetries, symmetries_of
from glue.merging.tensors import TensorSource
from glue.merging.weight_matching import Alignment, Pair, descend, likeness, match, unchanged
from glue.specs.errors import IncompatibleModelsError
from glue.specs.expression import Input, Member, Merge
from tests.support.models import tiny_llama, tiny_neox, tiny_tokenizer

SIZE = {"vocab_size": 99, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "initializer_range": 0.3}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZE, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=False),
    "llama_biases": LlamaConfig(**SIZE, num_attention_heads=4, attention_bias=True, mlp_bias=True),
    "qwen2": Qwen2Config(**SIZE, num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZE, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SIZE, num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**SIZE, num_attention_heads=4, num_key_value_heads=2, head_dim=8),
}
Weights = dict[str, Tensor]


def made(config: PreTrainedConfig, folder: Path, seed: int) -> Path:
    """A model whose norms and biases are random too, so that nothing about it is symmetric by chance."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    model.save_pretrained(folder)
    tiny_tokenizer(folder)
    return folder


def permuted(weights: Mapping[str, Tensor], config: PreTrainedConfig, seed: int) -> Weights:
    """The same function by other weights: every symmetry of the architecture used at once, written out plainly."""
    generator = torch.Generator().manual_seed(seed)

    def chance(count: int) -> Tensor:
        return torch.randperm(count, generator=generator)

    heads, groups = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    per_group, residual = heads // groups, chance(config.hidden_size)
    result = {}
    for layer in [None, *range(config.num_hidden_layers)]:
        hidden, group_order = chance(config.intermediate_size), chance(groups)
        query_rows, key_rows, value_rows, output_columns = [], [], [], []
        for group in group_order.tolist():
            values = chance(size)
            key_rows += [group * size + unit for unit in range(size)]
            value_rows += [group * size + int(unit) for unit in values]
            for query in chance(per_group).tolist():
                head = group * per_group + query
                query_rows += [head * size + unit for unit in range(size)]
                output_columns += [head * size + int(unit) for unit in values]
        rows = {
            "q_proj": query_rows,
            "k_proj": key_rows,
            "v_proj": value_rows,
            "gate_proj": hidden,
            "up_proj": hidden,
            "o_proj": residual,
            "down_proj": residual,
        }
        columns = {"o_proj": output_columns, "down_proj": hidden}
        for name, value in weights.items():
            if (f".layers.{layer}." in name) if layer is not None else (".layers." not in name):
                part = name.split(".")[-2]
                if part in {"q_norm", "k_norm"}:
                    result[name] = value
                elif value.dim() == 1:
                    result[name] = value[rows.get(part, residual)]
                else:
                    result[name] = value[rows[part]] if part in rows else value
                    result[name] = result[name][:, columns.get(part, residual)]
    return {name: value.contiguous() for name, value in result.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """By architecture a model `a`, another one `b`, and `c`, a copy of `a` with everything permuted."""
    root = tmp_path_factory.mktemp("models")
    found = {}
    for kind, config in CONFIGS.items():
        models = {name: made(config, root / kind / name, seed) for seed, name in enumerate("ab")}
        models["c"] = made(config, root / kind / "c", 0)
        weights = load_file(models["a"] / "model.safetensors")
        save_file(permuted(weights, config, 7), models["c"] / "model.safetensors", {"format": "pt"})
        found[kind] = models
    return found


def opened(models: Mapping[str, Path]) -> dict[str, Checkpoint]:
    return {name: Checkpoint.open(folder) for name, folder in models.items()}


def pair_of(first: Mapping[str, Tensor], second: Mapping[str, Tensor], config: PreTrainedConfig) -> Pair:
    shapes = {name: tuple(value.shape) for name, value in first.items()}
    symmetries = symmetries_of(shapes, config.to_dict())
    return Pair(shapes, symmetries, lambda name: (TensorSource("a", first[name]), TensorSource("b", second[name])))


def weights_of(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def in_order(pair: Pair, alignment: Alignment) -> Weights:
    return {name: pair.read(name, alignment.orders())[1] for name in pair.shapes}


def logits(folder: Path, weights: Weights | None = None) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if weights is not None:
        model.load_state_dict(weights, strict=False)
    tokens = torch.arange(40).view(2, 20) % 60
    with torch.no_grad():
        logits: Tensor = model(tokens).logits
    return logits


def merged_of(*names: str, **parameters: Any) -> Merge:
    inputs = tuple(Input(model=Member(name=name), parameters={"weight": 1.0}) for name in names)
    return Merge(method="git_rebasin", inputs=inputs, parameters=parameters)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_permuted_copy_is_recovered_exactly(kind: str, folders: dict[str, dict[str, Path]]) -> None:
    models = folders[kind]
    original, copy = weights_of(models["a"]), weights_of(models["c"])
    # The copy computes the same, by other weights.
    torch.testing.assert_close(logits(models["c"]), logits(models["a"]), rtol=1e-3, atol=1e-4)
    assert not torch.equal(copy["model.layers.1.mlp.up_proj.weight"], original["model.layers.1.mlp.up_proj.weight"])
    pair = pair_of(original, copy, CONFIGS[kind])
    recovered = in_order(pair, match(pair))
    assert all(torch.equal(recovered[name], original[name]) for name in original)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_order_that_is_found_does_not_change_what_a_model_computes(
    kind: str, folders: dict[str, dict[str, Path]]
) -> None:
    models = folders[kind]
    pair = pair_of(weights_of(models["a"]), weights_of(models["b"]), CONFIGS[kind])
    found = match(pair)
    moved = in_order(pair, found)
    assert not torch.equal(found.residual, torch.arange(24))
    torch.testing.assert_close(logits(models["b"], moved), logits(models["b"]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_step_makes_models_less_alike(kind: str, folders: dict[str, dict[str, Path]]) -> None:
    models = folders[kind]
    pair = pair_of(weights_of(models["a"]), weights_of(models["b"]), CONFIGS[kind])
    start = unchanged(pair.symmetries)
    path = [likeness(pair, each) for each in descend(pair, start)]
    assert len(path) > 2
    assert all(after > before for before, after in pairwise(path))
    assert likeness(pair, match(pair)) >= path[0]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(sorted(CONFIGS)), noise=st.sampled_from([0.0, 0.02]))
def test_any_permutation_is_recovered_also_under_noise(
    folders: dict[str, dict[str, Path]], seed: int, kind: str, noise: float
) -> None:
    original = weights_of(folders[kind]["a"])
    generator = torch.Generator().manual_seed(seed)
    noisy = {name: value + noise * torch.randn(value.shape, generator=generator) for name, value in original.items()}
    pair = pair_of(original, permuted(noisy, CONFIGS[kind], seed), CONFIGS[kind])
    recovered = in_order(pair, match(pair))
    assert all(torch.equal(recovered[name], noisy[name]) for name in original)


def test_a_model_and_itself_stay_as_they_are(folders: dict[str, dict[str, Path]]) -> None:
    weights = weights_of(folders["qwen2"]["a"])
    pair = pair_of(weights, weights, CONFIGS["qwen2"])
    assert all(torch.equal(order, torch.arange(len(order))) for order in match(pair).orders().values())


def test_units_of_queries_and_keys_keep_their_places(folders: dict[str, dict[str, Path]]) -> None:
    models = folders["mistral"]
    pair = pair_of(weights_of(models["a"]), weights_of(models["b"]), CONFIGS["mistral"])
    orders = match(pair).orders()
    size = pair.symmetries.heads.size
    for layer in pair.symmetries.layers:
        for kind in ("queries", "keys"):
            by_head = orders[layer, kind].view(-1, size)
            assert torch.equal(by_head - by_head[:, :1], torch.arange(size).expand_as(by_head))
        # A query head stays with the key of its group.
        assert torch.equal(orders[layer, "queries"].view(2, -1, size)[:, :, 0] // (2 * size), _groups(orders, layer))


def _groups(orders: Mapping[Any, Tensor], layer: int) -> Tensor:
    groups = orders[layer, "keys"].view(2, -1)[:, :1] // orders[layer, "keys"].view(2, -1).shape[1]
    return groups.expand(2, 2)


@pytest.mark.parametrize("kind", CONFIGS)
def test_merged_with_its_permuted_copy_a_model_is_given_back(
    kind: str, folders: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    models = folders[kind]
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        merge_to_folder(
            merged_of("a", "c"), models, out, dtype="float32", shard_bytes=20_000, token=1,
            progress=lambda fraction, message: None,
        )  # fmt: skip
    first, again = ({p.name: p.read_bytes() for p in out.iterdir()} for out in outs)
    assert first == again
    original = weights_of(models["a"])
    with Checkpoint.open(outs[0]) as merged:
        assert merged.tensors.keys() == original.keys()
        assert all(torch.equal(merged.read(name), original[name]) for name in original)


def test_the_merge_of_three_is_their_mean_after_matching(folders: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    models = folders["qwen2"]
    expression = merged_of("a", "b", "c")
    pair = pair_of(weights_of(models["a"]), weights_of(models["b"]), CONFIGS["qwen2"])
    moved, original = in_order(pair, match(pair)), weights_of(models["a"])
    checkpoints = opened(models)
    resident = AutoModelForCausalLM.from_pretrained(models["b"], dtype=torch.float32)
    merge_into(expression, checkpoints, resident)
    for name, value in original.items():
        torch.testing.assert_close(resident.state_dict()[name], (2 * value + moved[name]) / 3)
    name = "model.layers.1.self_attn.q_proj.bias"
    assert torch.equal(evaluate(expression, checkpoints, name), resident.state_dict()[name])


def test_one_model_alone_is_given_back_bit_for_bit(folders: dict[str, dict[str, Path]]) -> None:
    checkpoints = opened(folders["llama"])
    for name in checkpoints["a"].tensors:
        assert torch.equal(evaluate(merged_of("a"), checkpoints, name), checkpoints["a"].read(name))


def test_a_nested_merge_is_aligned_as_the_model_that_it_makes(folders: dict[str, dict[str, Path]]) -> None:
    inner = Merge(
        method="linear",
        inputs=tuple(Input(model=Member(name=name), parameters={"weight": 0.5}) for name in ("c", "c")),
    )
    inputs = (*merged_of("a").inputs, Input(model=inner, parameters={"weight": 1.0}))
    checkpoints = opened(folders["mistral"])
    for name in checkpoints["a"].tensors:
        merged = evaluate(Merge(method="git_rebasin", inputs=inputs), checkpoints, name)
        assert torch.equal(merged, checkpoints["a"].read(name))


def test_other_architectures_are_refused_before_any_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "read_flat", lambda *arguments: pytest.fail("a weight was read"))
    models = {name: tiny_neox(tmp_path / name, seed=seed) for seed, name in enumerate("ab")}
    with pytest.raises(IncompatibleModelsError, match=r"not known: embed_out\.weight .*linear"):
        evaluate(merged_of("a", "b"), opened(models), "gpt_neox.final_layer_norm.weight")
    file = tmp_path / "merge.yml"
    file.write_text(
        "merge_method: git_rebasin\ndtype: float32\nmodels:\n"
        + "".join(f"- {{model: {folder}, parameters: {{weight: 1}}}}\n" for folder in models.values())
    )
    (problem,) = preflight_file(file, tmp_path).problems
    assert problem.code == "unknown_symmetry"


def test_heads_that_the_config_does_not_describe_are_refused(tmp_path: Path) -> None:
    shapes = {name: info.shape for name, info in Checkpoint.open(tiny_llama(tmp_path / "a")).tensors.items()}
    config = {"num_attention_heads": 4, "num_key_value_heads": 1, "hidden_size": 16}
    with pytest.raises(IncompatibleModelsError, match=r"k_proj\.weight has shape .* 4 keys units"):
        symmetries_of(shapes, config)
    known: Symmetries = symmetries_of(shapes, config | {"num_attention_heads": 2, "num_key_value_heads": 2})
    assert known.layers == (0, 1)
