"""What holds for every method on whole models: all tensors, tied weights, buffers, nested merges, resident models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from glue.checkpoints.reader import Checkpoint
from glue.merging.engine import evaluate, merge_into, merge_to_folder
from glue.merging.methods import all_methods, method_of
from glue.merging.registry import BaseUse
from glue.specs.errors import IncompatibleModelsError
from glue.specs.expression import Input, Member, Merge, expression_digest, linear
from tests.support.models import tiny_llama, tiny_tokenizer

NAMES = sorted(all_methods())
OPTIONS: dict[str, dict[str, Any]] = {
    "slerp": {"t": 0.3},
    "nearswap": {"t": 0.05},
    "sce": {"select_topk": 0.5},
    "dare_linear": {"seed": 3},
    "dare_ties": {"seed": 3},
    "della": {"seed": 3},
    "della_linear": {"seed": 3},
}
EACH: dict[str, dict[str, float]] = {
    "ties": {"density": 0.4},
    "dare_linear": {"density": 0.6},
    "dare_ties": {"density": 0.6},
    "della": {"density": 0.6},
    "della_linear": {"density": 0.6},
    "breadcrumbs": {"density": 0.5},
    "breadcrumbs_ties": {"density": 0.5},
}
NORMS, QUERIES = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("zoo")
    return {name: tiny_llama(root / name, seed=seed) for seed, name in enumerate("abcd")}


def opened(folders: dict[str, Path]) -> dict[str, Checkpoint]:
    return {name: Checkpoint.open(folder) for name, folder in folders.items()}


def merge_of(name: str, *parts: Member | Merge, **shared: Any) -> Merge:
    """The method over as many of the parts as it takes, the model `d` as its base where it has one."""
    method = method_of(name)
    weighted = "weight" in method.per_input.model_fields
    own = ({"weight": 0.4} if weighted else {}) | EACH.get(name, {})
    inputs = tuple(Input(model=part, parameters=own) for part in parts[: method.most])
    base = None if method.base is BaseUse.NONE else Member(name="d")
    return Merge(method=name, inputs=inputs, base=base, parameters=OPTIONS.get(name, {}) | shared)


def members(names: str) -> list[Member]:
    return [Member(name=name) for name in names]


def build(expression: Member | Merge, zoo: dict[str, Path], out: Path, dtype: str = "float32") -> Path:
    merge_to_folder(
        expression, zoo, out, dtype=dtype, shard_bytes=10**9, token=1, progress=lambda fraction, message: None
    )
    return out


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_written_in_the_dtype_that_is_declared(name: str, zoo: dict[str, Path], tmp_path: Path) -> None:
    out = build(merge_of(name, *members("abc")), zoo, tmp_path / "out", "bfloat16")
    expected = load_file(zoo["a"] / "model.safetensors")
    found = load_file(out / "model.safetensors")
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in expected.items()}
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bytes_and_the_resident_model_the_same_bits(
    name: str, zoo: dict[str, Path], tmp_path: Path
) -> None:
    expression = merge_of(name, *members("abc"))
    one, two = (build(expression, zoo, tmp_path / each) for each in ("one", "two"))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    resident = AutoModelForCausalLM.from_pretrained(zoo["b"], dtype=torch.float32)
    merge_into(expression, opened(zoo), resident)
    weights = resident.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in load_file(one / "model.safetensors").items())


@pytest.mark.parametrize("name", NAMES)
def test_a_merge_inside_another_is_what_it_would_be_as_a_folder(
    name: str, zoo: dict[str, Path], tmp_path: Path
) -> None:
    """The method inside, and the method outside: the tree gives the bits of the step by step way."""
    inner, mean = merge_of(name, *members("abc")), linear({"a": 0.5, "b": 0.5})
    for number, (nested, outer) in enumerate(((inner, "linear"), (mean, name))):
        # Random masks are keyed by the name of a model, and the name of a merge is its digest.
        alias = expression_digest(nested)
        saved = build(nested, zoo, tmp_path / str(number))
        checkpoints = opened(zoo | {alias: saved})
        in_one = merge_of(outer, nested, *members("bc"))
        stepwise = merge_of(outer, Member(name=alias), *members("bc"))
        for tensor in (NORMS, QUERIES):
            assert torch.equal(evaluate(in_one, checkpoints, tensor), evaluate(stepwise, checkpoints, tensor))


@pytest.mark.parametrize("name", [each for each in NAMES if method_of(each).base is not BaseUse.NONE])
def test_a_base_may_be_a_merge(name: str, zoo: dict[str, Path], tmp_path: Path) -> None:
    base = linear({"c": 0.5, "d": 0.5})
    saved = build(base, zoo, tmp_path / "base")
    nested = merge_of(name, *members("ab")).model_copy(update={"base": base})
    stepwise = merge_of(name, *members("ab")).model_copy(update={"base": Member(name="s")})
    checkpoints = opened(zoo | {"s": saved})
    for tensor in (NORMS, QUERIES):
        assert torch.equal(evaluate(nested, checkpoints, tensor), evaluate(stepwise, checkpoints, tensor))


# --- what is no weight -------------------------------------------------------------------------------------------


class CountingConfig(LlamaConfig):
    model_type = "counting_llama"


class CountingLlama(LlamaForCausalLM):
    """A Llama with a saved buffer of whole numbers."""

    config_class = CountingConfig

    def __init__(self, config: CountingConfig) -> None:
        super().__init__(config)
        self.register_buffer("counts", torch.arange(5), persistent=True)


@pytest.fixture(scope="module")
def counting() -> None:
    AutoConfig.register("counting_llama", CountingConfig)
    AutoModelForCausalLM.register(CountingConfig, CountingLlama)


def counting_model(folder: Path, seed: int, first: int = 7) -> Path:
    torch.manual_seed(seed)
    model = CountingLlama(
        CountingConfig(
            vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    model.counts.add_(first)
    model.save_pretrained(folder)
    tiny_tokenizer(folder)
    return folder


@pytest.mark.parametrize("name", ["linear", "slerp", "ties", "karcher", "arcee_fusion"])
def test_buffers_that_are_no_weights_are_copied(name: str, tmp_path: Path, counting: None) -> None:
    folders = {each: counting_model(tmp_path / each, seed) for seed, each in enumerate("abcd")}
    out = build(merge_of(name, *members("ab")), folders, tmp_path / "out", "bfloat16")
    merged = load_file(out / "model.safetensors")
    assert torch.equal(merged["counts"], torch.arange(7, 12))
    assert merged["lm_head.weight"].dtype == torch.bfloat16
    resident = AutoModelForCausalLM.from_pretrained(folders["a"], dtype=torch.float32)
    resident.counts.zero_()
    merge_into(merge_of(name, *members("ab")), opened(folders), resident)
    assert torch.equal(resident.counts, torch.arange(7, 12))


def test_buffers_that_differ_are_an_error(tmp_path: Path, counting: None) -> None:
    folders = {"a": counting_model(tmp_path / "a", 0), "b": counting_model(tmp_path / "b", 1, first=8)}
    with pytest.raises(IncompatibleModelsError, match="counts is not a weight, and b's differs"):
        build(linear({"a": 0.5, "b": 0.5}), folders, tmp_path / "out")


@pytest.mark.parametrize("name", NAMES)
def test_sums_are_taken_in_fp32_whatever_is_stored(name: str, zoo: dict[str, Path], tmp_path: Path) -> None:
    """Models in bf16 give the bits of the same values stored in fp32, rounded once."""
    narrow, wide = {}, {}
    for each, folder in zoo.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        for kind, folders in ((torch.bfloat16, narrow), (torch.float32, wide)):
            model.to(kind).save_pretrained(tmp_path / str(kind) / each)
            tiny_tokenizer(tmp_path / str(kind) / each)
            folders[each] = tmp_path / str(kind) / each
    expression = merge_of(name, *members("abc"))
    stored = load_file(build(expression, narrow, tmp_path / "out", "bfloat16") / "model.safetensors")
    for tensor in (NORMS, QUERIES):
        exact = evaluate(expression, opened(wide), tensor)
        assert torch.equal(evaluate(expression, opened(narrow), tensor), exact)
        assert torch.equal(stored[tensor], exact.to(torch.bfloat16))
