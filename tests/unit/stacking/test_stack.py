"""Stacks: in closed cases they compute what they must, and transformers loads them by itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from glue.checkpoints.manifest import read_manifest, verify_manifest
from glue.cli.main import app
from glue.mixture.load import load_model
from tests.support.mixtures import padded, prompts, tiny_mistral, tiny_qwen2
from tests.support.models import tiny_llama, tiny_neox, tiny_qwen3

Config = dict[str, Any]
Kind = Callable[..., Path]
KINDS = [tiny_llama, tiny_neox, tiny_qwen3, tiny_mistral, tiny_qwen2]


def run(root: Path, config: Config, *options: str, out: str = "out") -> tuple[int, str]:
    (root / "stack.yml").write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(app, ["stack", str(root / "stack.yml"), str(root / out), *options])
    return result.exit_code, " ".join(result.output.split())


def stacked(root: Path, config: Config, *, out: str = "out") -> Path:
    code, output = run(root, config, out=out)
    assert code == 0, output
    verify_manifest(root / out, read_manifest(root / out))
    return root / out


def loaded(folder: Path) -> Any:
    return load_model(folder, torch.float32, "cpu")


def logits(folder: Path, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return loaded(folder)(ids).logits  # type: ignore[no-any-return]


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_upscaling_by_half_the_depth_gives_the_original(kind: Kind, tmp_path: Path) -> None:
    dense = kind(tmp_path / "a", num_hidden_layers=4)
    folder = stacked(tmp_path, {"method": "depth_upscale", "model": "./a", "dropped": 2})
    before, after = tensors(dense), tensors(folder)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(folder, prompts(3, 20)), logits(dense, prompts(3, 20)))


def test_upscaling_repeats_the_middle(tmp_path: Path) -> None:
    before = tensors(tiny_llama(tmp_path / "a", num_hidden_layers=4))
    folder = stacked(tmp_path, {"method": "depth_upscale", "model": "./a"})
    after = tensors(folder)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 6
    for index, source in enumerate((0, 1, 2, 1, 2, 3)):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(after[name.format(index)], before[name.format(source)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_zero_blocks_leave_the_logits_as_they_are(kind: Kind, blocks: int, tmp_path: Path) -> None:
    dense = kind(tmp_path / "a", num_hidden_layers=4)
    folder = stacked(tmp_path, {"method": "zero_blocks", "model": "./a", "blocks": blocks})
    assert loaded(folder).config.num_hidden_layers == 4 + blocks
    assert torch.equal(logits(folder, prompts(3, 20)), logits(dense, prompts(3, 20)))


def test_zero_blocks_learn(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "a")
    model = loaded(stacked(tmp_path, {"method": "zero_blocks", "model": "./a", "blocks": 2}))
    ids = prompts(2, 12)
    model.train()(ids, labels=ids).loss.backward()
    for layer in (1, 3):
        assert model.model.layers[layer].mlp.down_proj.weight.grad.abs().sum() > 0
        assert model.model.layers[layer].self_attn.o_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["concatenate", "interleave"])
def test_a_model_with_nothing_is_itself(kind: Kind, method: str, tmp_path: Path) -> None:
    before = tensors(kind(tmp_path / "a"))
    after = tensors(stacked(tmp_path, {"method": method, "models": ["./a"]}))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("method", "order"), [("concatenate", "a0 a1 b0 b1 b2"), ("interleave", "a0 b0 a1 b1 b2")])
def test_layers_come_in_order_and_the_ends_are_the_mean(method: str, order: str, tmp_path: Path) -> None:
    both = {"a": tensors(tiny_llama(tmp_path / "a")), "b": tensors(tiny_llama(tmp_path / "b", 1, num_hidden_layers=3))}
    after = tensors(stacked(tmp_path, {"method": method, "models": ["./a", "./b"]}))
    for index, (model, layer) in enumerate(order.split()):
        expected = both[model][f"model.layers.{layer}.self_attn.q_proj.weight"]
        assert torch.equal(after[f"model.layers.{index}.self_attn.q_proj.weight"], expected)
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        torch.testing.assert_close(after[name], (both["a"][name] + both["b"][name]) / 2)
    assert "lm_head.weight" not in after


def test_outer_ends_keep_each_models_own(tmp_path: Path) -> None:
    first, last = tensors(tiny_llama(tmp_path / "a")), tensors(tiny_llama(tmp_path / "b", 1))
    after = tensors(stacked(tmp_path, {"method": "concatenate", "models": ["./a", "./b"], "ends": "outer"}))
    assert torch.equal(after["model.embed_tokens.weight"], first["model.embed_tokens.weight"])
    # Both are tied; the last model's head is its embedding, and the stack's is untied.
    assert torch.equal(after["lm_head.weight"], last["model.embed_tokens.weight"])
    assert torch.equal(after["model.norm.weight"], last["model.norm.weight"])


def test_top_layers_are_copied(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "a", num_hidden_layers=3)
    after = tensors(stacked(tmp_path, {"method": "copy_top", "model": "./a", "layers": 2}))
    for index, source in ((3, 1), (4, 2)):
        name = "model.layers.{}.mlp.gate_proj.weight"
        assert torch.equal(after[name.format(index)], after[name.format(source)])


def test_kinds_of_attention_follow_their_layers(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention"]
    tiny_qwen3(tmp_path / "a", use_sliding_window=True, sliding_window=4, max_window_layers=1, layer_types=kinds)
    folder = stacked(tmp_path, {"method": "copy_top", "model": "./a", "layers": 1})
    assert loaded(folder).config.layer_types == [*kinds, "sliding_attention"]


@pytest.mark.parametrize("method", ["concatenate", "interleave"])
@pytest.mark.parametrize("kinds", [(tiny_llama, tiny_neox), (tiny_neox, tiny_qwen3), (tiny_qwen2, tiny_mistral)])
def test_different_architectures_stand_on_each_other(method: str, kinds: tuple[Kind, Kind], tmp_path: Path) -> None:
    kinds[0](tmp_path / "a", seed=1), kinds[1](tmp_path / "b", seed=2)
    folder = stacked(tmp_path, {"method": method, "models": ["./a", "./b"]})
    model = loaded(folder)
    assert type(model).__name__ == "GlueStackForCausalLM"
    ids = prompts(3, 12)
    cached = model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    assert torch.equal(cached, model.generate(ids, max_new_tokens=12, min_new_tokens=12, use_cache=False))
    beams = model.generate(ids, max_new_tokens=6, num_beams=3)
    assert torch.equal(beams, model.generate(ids, max_new_tokens=6, num_beams=3, use_cache=False))


def test_two_parts_compute_what_their_layers_do(tmp_path: Path) -> None:
    llama, neox = tiny_llama(tmp_path / "a", seed=1), tiny_neox(tmp_path / "b", seed=2)
    folder = stacked(tmp_path, {"method": "concatenate", "models": ["./a", "./b"]})
    ids = prompts(3, 12)
    with torch.no_grad():
        lower, upper = loaded(llama), loaded(neox)
        lower.model.norm = torch.nn.Identity()
        expected = upper(inputs_embeds=lower.model(ids).last_hidden_state).logits
    assert torch.equal(logits(folder, ids), expected)


def test_padding_on_the_left_changes_nothing_in_a_mixed_stack(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "a", seed=1), tiny_neox(tmp_path / "b", seed=2)
    model = loaded(stacked(tmp_path, {"method": "interleave", "models": ["./a", "./b"]}))
    samples = [prompts(1, length, seed=length)[0] for length in (5, 9, 12)]
    ids, mask = padded(samples, "left")
    together = model.generate(ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8)[:, -8:]
    for row, sample in enumerate(samples):
        alone = model.generate(sample[None], max_new_tokens=8, min_new_tokens=8)[0, -8:]
        assert torch.equal(together[row], alone)


def test_a_mixed_stack_is_saved_and_loaded_again(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "a", seed=1), tiny_qwen3(tmp_path / "b", seed=2)
    folder = stacked(tmp_path, {"method": "concatenate", "models": ["./a", "./b"]})
    model = loaded(folder)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    ids = prompts(2, 9)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again.eval()(ids).logits)
