"""Merging into resident models whose experts transformers keeps fused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
)

from glue.checkpoints.reader import Checkpoint
from glue.merging.engine import merge_into, merge_to_folder
from glue.specs.expression import linear
from tests.support.models import tiny_tokenizer

SIZE = {
    "vocab_size": 99,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "mixtral": MixtralConfig(**SIZE, num_local_experts=3),
    "qwen3_moe": Qwen3MoeConfig(**SIZE, num_experts=4, moe_intermediate_size=24, head_dim=8),
    "olmoe": OlmoeConfig(**SIZE, num_experts=3),
    "gpt_oss": GptOssConfig(**SIZE, num_local_experts=3, head_dim=8),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_expert_is_overwritten(kind: str, tmp_path: Path) -> None:
    folders = {}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(CONFIGS[kind]).save_pretrained(tmp_path / name)
        tiny_tokenizer(tmp_path / name)
        folders[name] = tmp_path / name
    expression = linear({"a": 0.25, "b": 0.75})
    merge_to_folder(
        expression, folders, tmp_path / "out", dtype="float32", shard_bytes=10**9, token=1,
        progress=lambda fraction, message: None,
    )  # fmt: skip
    resident = AutoModelForCausalLM.from_pretrained(folders["a"], dtype=torch.float32)
    merge_into(expression, {name: Checkpoint.open(folder) for name, folder in folders.items()}, resident)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    found = resident.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    resident.save_pretrained(tmp_path / "saved")
    saved, written = (load_file(tmp_path / name / "model.safetensors") for name in ("saved", "out"))
    assert saved.keys() == written.keys()
    assert all(torch.equal(saved[name], written[name]) for name in written)
