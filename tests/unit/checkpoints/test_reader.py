import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from glue.checkpoints.architecture import architecture_of, stored_tensors
from glue.checkpoints.content import content_digest
from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.shards import PlannedTensor
from glue.checkpoints.verify import verify_checkpoint
from glue.specs.errors import IncompatibleModelsError
from tests.support.models import tiny_llama, tiny_qwen3


def quiet(fraction: float, message: str) -> None:
    pass


def test_tensors_come_back_whole_and_in_parts(tmp_path: Path) -> None:
    expected = load_file(tiny_llama(tmp_path) / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.tensors.keys() == expected.keys()
        assert checkpoint.config["model_type"] == "llama"
        for name, tensor in expected.items():
            assert torch.equal(checkpoint.read(name), tensor)
            assert checkpoint.read(name, torch.bfloat16).dtype == torch.bfloat16
            assert torch.equal(torch.cat(list(checkpoint.blocks(name, 37))), tensor.flatten())
        with pytest.raises(IncompatibleModelsError):
            checkpoint.read("no.such.tensor")
        with pytest.raises(IndexError):
            checkpoint.read_flat("model.norm.weight", 0, 17)


def test_a_file_that_is_cut_while_open_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path) / "model.safetensors"
    checkpoint = Checkpoint.open(tmp_path)
    name = max(checkpoint.tensors, key=lambda each: checkpoint.tensors[each].start)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 8)
    with pytest.raises(IncompatibleModelsError, match="shorter"):
        checkpoint.read(name)


def test_sharding_does_not_change_the_content_digest_but_every_value_does(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "one")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path / "two"))
    model.save_pretrained(tmp_path / "two", max_shard_size=4000)
    (tmp_path / "two" / "model.safetensors").unlink()
    assert (tmp_path / "two" / "model.safetensors.index.json").is_file()
    assert content_digest(tmp_path / "one") == content_digest(tmp_path / "two")
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6
    model.save_pretrained(tmp_path / "one")
    assert content_digest(tmp_path / "one") != content_digest(tmp_path / "two")


@pytest.mark.parametrize("kind", ["mixtral", "gpt2", "llama", "qwen3"])
def test_the_expected_tensors_are_those_that_transformers_saves(tmp_path: Path, kind: str) -> None:
    if kind == "mixtral":
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = MixtralConfig(**shape, num_key_value_heads=2, vocab_size=50, num_local_experts=2)
        MixtralForCausalLM(config).save_pretrained(tmp_path)
    elif kind == "gpt2":
        config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
        GPT2LMHeadModel(config).save_pretrained(tmp_path)
    else:
        {"llama": tiny_llama, "qwen3": tiny_qwen3}[kind](tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        architecture = architecture_of(checkpoint.config)
        assert architecture.shapes == {name: tuple(tensor.shape) for name, tensor in saved.items()}
        assert stored_tensors(architecture, checkpoint.tensors, kind).keys() == saved.keys()


def test_a_checkpoint_of_the_inner_model_has_shorter_names(tmp_path: Path) -> None:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).transformer.save_pretrained(tmp_path)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert "wte.weight" in checkpoint.tensors
        stored = stored_tensors(architecture_of(checkpoint.config), checkpoint.tensors, "gpt2")
        assert stored.keys() == checkpoint.tensors.keys()


@pytest.mark.parametrize("config", [{"model_type": "no_such"}, {"model_type": "vit"}, {}])
def test_what_is_no_causal_language_model_is_refused(config: dict[str, str]) -> None:
    with pytest.raises(IncompatibleModelsError):
        architecture_of(config)


def test_verification_finds_what_is_wrong(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    with Checkpoint.open(tmp_path) as checkpoint:
        plan = [PlannedTensor(name, info.shape, torch.float32) for name, info in checkpoint.tensors.items()]
    verify_checkpoint(tmp_path, plan, quiet)
    for wrong in (plan[1:], [*plan, PlannedTensor("more", (1,), torch.float32)]):
        with pytest.raises(IncompatibleModelsError, match="not as planned"):
            verify_checkpoint(tmp_path, wrong, quiet)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 20}))
    with pytest.raises(IncompatibleModelsError, match="tokenizer gives ids"):
        verify_checkpoint(tmp_path, plan, quiet)
    (tmp_path / "config.json").write_text(json.dumps(config))
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-4:] = torch.tensor([float("nan")]).numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(IncompatibleModelsError, match="NaN"):
        verify_checkpoint(tmp_path, plan, quiet)
