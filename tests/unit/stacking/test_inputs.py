"""Stacks of nested merges, adapters and other vocabularies; kills; mistakes; a bare process."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, GemmaConfig, GemmaForCausalLM

from glue.checkpoints.manifest import build_manifest
from glue.merging.mergekit_yaml import ModelReference
from glue.merging.run import merge_file
from glue.stacking.modeling_glue_stack import final_norm
from glue.stacking.run import write_stack
from glue.stacking.stack_yaml import parse_stack
from tests.support.mixtures import prompts, silent
from tests.support.models import char_tokenizer, tiny_llama, tiny_neox, tiny_qwen3, tiny_tokenizer
from tests.unit.stacking.test_stack import loaded, logits, run, stacked, tensors

Config = dict[str, Any]
Kind = Callable[..., Path]
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
def test_a_nested_merge_gives_what_the_stored_one_does(method: str, tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        tiny_llama(tmp_path / name, seed=seed)
    models = [{"model": "./b", "parameters": {"weight": 0.6}}, {"model": "./c", "parameters": {"weight": 0.4}}]
    merge: Config = {"merge_method": method, "dtype": "float32", "models": models}
    if method != "linear":
        merge |= {"base_model": "./a", "parameters": {"density": 0.5}}
    (tmp_path / "merge.yml").write_text(yaml.safe_dump(merge))
    merge_file(tmp_path / "merge.yml", tmp_path / "m", shard_bytes=10**9, seed=None, progress=silent)
    stored = tensors(stacked(tmp_path, {"method": "concatenate", "models": ["./m", "./a"]}, out="stored"))
    nested = tensors(stacked(tmp_path, {"method": "concatenate", "models": [{"merge": merge}, "./a"]}, out="nested"))
    assert stored.keys() == nested.keys()
    assert all(torch.equal(stored[name], nested[name]) for name in stored)


def test_an_adapter_is_put_on_first(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "a")
    (tmp_path / "lora").mkdir()
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 16, generator=generator), torch.randn(16, 2, generator=generator)
    place = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
    save_file({f"{place}A.weight": down, f"{place}B.weight": up}, tmp_path / "lora" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    after = tensors(stacked(tmp_path, {"method": "copy_top", "model": "./a+./lora", "layers": 1}))
    expected = tensors(tmp_path / "a")["model.layers.1.self_attn.q_proj.weight"] + 2 * up @ down
    for layer in (1, 2):
        torch.testing.assert_close(after[f"model.layers.{layer}.self_attn.q_proj.weight"], expected)


def with_two_more_tokens(folder: Path, kind: Kind) -> None:
    kind(folder, seed=1, vocab_size=101)
    tokenizer = char_tokenizer()
    tokenizer.add_tokens(["<x>", "<y>"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("kind", [tiny_llama, tiny_neox])
@pytest.mark.parametrize(("source", "rows"), [("union", 101), ("base", 99)])
def test_vocabularies_are_brought_together(kind: Kind, source: str, rows: int, tmp_path: Path) -> None:
    tiny_llama(tmp_path / "a")
    with_two_more_tokens(tmp_path / "b", kind)
    config: Config = {"method": "concatenate", "models": ["./a", "./b"]}
    assert "set tokenizer_source to union" in run(tmp_path, config)[1]
    folder = stacked(tmp_path, config | {"tokenizer_source": source})
    assert len(AutoTokenizer.from_pretrained(folder)) == rows
    assert logits(folder, prompts(2, 9)).shape[-1] == rows


@pytest.mark.parametrize(
    ("kind", "own", "result"),
    [(tiny_llama, EMBEDDING, EMBEDDING), (tiny_neox, "gpt_neox.embed_in.weight", "parts.0.embed_tokens.weight")],
)
def test_rows_that_a_model_lacks_are_the_others(kind: Kind, own: str, result: str, tmp_path: Path) -> None:
    tiny_llama(tmp_path / "a")
    with_two_more_tokens(tmp_path / "b", kind)
    config = {"method": "concatenate", "models": ["./a", "./b"], "tokenizer_source": "union"}
    after = tensors(stacked(tmp_path, config))
    assert torch.equal(after[result][99:], tensors(tmp_path / "b")[own][99:])


@pytest.mark.parametrize("kind", [tiny_llama, tiny_neox])
def test_a_killed_build_goes_on_with_the_same_bytes(kind: Kind, tmp_path: Path) -> None:
    tiny_llama(tmp_path / "a"), kind(tmp_path / "b", seed=1)
    stack = parse_stack({"method": "interleave", "models": [str(tmp_path / "a"), str(tmp_path / "b")]})

    def locate(reference: ModelReference) -> tuple[Path, ...]:
        return (Path(reference.model),)

    build = partial(write_stack, stack, locate, shard_bytes=10_000, token=1, progress=silent)
    one, two = tmp_path / "one", tmp_path / "two"
    build(one), build(two)
    assert build_manifest(one) == build_manifest(two)
    sorted(two.glob("*.safetensors"))[1].unlink()
    (two / "manifest.json").unlink()
    build(two)
    assert build_manifest(one) == build_manifest(two)


@pytest.mark.parametrize("kind", [(GemmaForCausalLM, GemmaConfig), (Gemma2ForCausalLM, Gemma2Config)])
def test_an_embedding_that_scales_its_rows_still_does(kind: tuple[Any, Any], tmp_path: Path) -> None:
    shape = {"vocab_size": 99, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "query_pre_attn_scalar": 8}
    torch.manual_seed(0)
    kind[0](kind[1](**shape, **heads, bos_token_id=None, eos_token_id=1)).save_pretrained(tmp_path / "a")
    tiny_tokenizer(tmp_path / "a"), tiny_llama(tmp_path / "b", seed=1)
    folder = stacked(tmp_path, {"method": "concatenate", "models": ["./a", "./b"]})
    lower, upper = loaded(tmp_path / "a"), loaded(tmp_path / "b")
    setattr(lower.model, final_norm(lower.model), torch.nn.Identity())
    ids = prompts(2, 9)
    with torch.no_grad():
        expected = upper(inputs_embeds=lower.model(ids).last_hidden_state).logits
    assert torch.equal(logits(folder, ids), expected)


BARE = """
import sys, torch
from transformers import AutoModelForCausalLM
def load(folder): return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
model, ids = load(sys.argv[1]), torch.arange(4, 20)[None]
settings = {"max_new_tokens": 5, "do_sample": False}
assert torch.equal(model.generate(ids, **settings), model.generate(ids, use_cache=False, **settings))
model.gradient_checkpointing_enable()
model.train()(ids, labels=ids).loss.backward()
torch.optim.SGD(model.parameters(), 0.1).step()
assert all(parameter.grad is not None for parameter in model.parameters())
model.eval().save_pretrained(sys.argv[2])
with torch.no_grad():
    assert torch.equal(model(ids).logits, load(sys.argv[2]).eval()(ids).logits)
assert not [name for name in sys.modules if name.split(".")[0] == "glue"]
"""


@pytest.mark.parametrize("kind", [tiny_qwen3, tiny_neox])
def test_a_bare_process_loads_generates_trains_and_saves(kind: Kind, tmp_path: Path) -> None:
    tiny_qwen3(tmp_path / "a"), kind(tmp_path / "b", seed=1)
    config = {"method": "concatenate", "models": ["./a", "./b"], "dtype": "bfloat16"}
    code, output = run(tmp_path, config, "--verify", "load")
    assert code == 0, output
    arguments = [sys.executable, "-c", BARE, str(tmp_path / "out"), str(tmp_path / "again")]
    result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "method is missing"),
        ({"method": "pile"}, "set method to one of"),
        ({"method": "concatenate", "modls": ["./a"]}, "did you mean 'models'"),
        ({"method": "concatenate", "models": []}, "/models"),
        ({"method": "concatenate", "models": ["./a", "./wide"]}, "different widths"),
        ({"method": "concatenate", "models": ["./a", "./neox"], "ends": "mean"}, "set ends to outer"),
        ({"method": "concatenate", "models": ["./nowhere"]}, "not a folder"),
        ({"method": "depth_upscale", "model": "./a", "dropped": 2}, "drop at least one layer fewer"),
        ({"method": "zero_blocks", "model": "./a", "blocks": 3}, "set blocks to one of 1, 2"),
        ({"method": "copy_top", "model": "./a", "layers": 3}, "set layers to at most 2"),
        ({"method": "copy_top", "model": {"merge": {"merge_method": "no", "models": []}}, "layers": 1}, "/model/merge"),
    ],
)
def test_mistakes_are_told(config: Config, told: str, tmp_path: Path) -> None:
    tiny_llama(tmp_path / "a"), tiny_llama(tmp_path / "wide", hidden_size=32), tiny_neox(tmp_path / "neox")
    code, output = run(tmp_path, config)
    assert code == 1
    assert told in output
    assert not (tmp_path / "out").exists()
