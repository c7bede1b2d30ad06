"""LoRA adapters read as members: the very weights that PEFT gives when it merges them into the base."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from glue.checkpoints.adapter import AdaptedCheckpoint
from glue.merging.run import merge_file
from glue.specs.errors import IncompatibleModelsError, InvalidInputError
from tests.support.models import tiny_llama
from tests.support.peer import PEER, is_installed

pytestmark = pytest.mark.skipif(not is_installed(), reason="the peer is not installed; run `make peer`")

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("float32", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}),
    "rounded": ("bfloat16", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}),
    "rslora": ("float16", {"r": 8, "lora_alpha": 16, "use_rslora": True, "target_modules": ["gate_proj", "v_proj"]}),
    "patterns": (
        "float32",
        {
            "r": 4,
            "lora_alpha": 8,
            "rank_pattern": {"k_proj": 2},
            "alpha_pattern": {"layers.1.self_attn.k_proj": 32},
            "target_modules": ["k_proj", "q_proj"],
        },
    ),
    "embedding": ("float32", {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "o_proj"]}),
    "saved-head": ("float32", {"r": 4, "target_modules": ["up_proj"], "modules_to_save": ["lm_head"]}),
}
MAKE = """
import json, sys, torch, peft
from transformers import AutoModelForCausalLM
for name, (folder, dtype, settings) in json.loads(sys.argv[1]).items():
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=getattr(torch, dtype))
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    adapted.save_pretrained(f"{folder}/adapter")
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=getattr(torch, dtype))
    peft.PeftModel.from_pretrained(model, f"{folder}/adapter").merge_and_unload().save_pretrained(f"{folder}/merged")
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    listed = {}
    for name, (dtype, settings) in KINDS.items():
        tiny_llama(root / name / "model", tie_word_embeddings=False)
        tensors = load_file(root / name / "model" / "model.safetensors")
        converted = {key: tensor.to(getattr(torch, dtype)) for key, tensor in tensors.items()}
        save_file(converted, root / name / "model" / "model.safetensors", {"format": "pt"})
        listed[name] = (str(root / name), dtype, settings)
    environment = os.environ | {"PYTHONPATH": str(PEER)}
    subprocess.run([sys.executable, "-c", MAKE, json.dumps(listed)], env=environment, check=True, capture_output=True)
    return root


@pytest.mark.parametrize("name", KINDS)
def test_the_weights_are_those_of_peft(root: Path, name: str) -> None:
    expected = load_file(root / name / "merged" / "model.safetensors")
    with AdaptedCheckpoint.open_adapted(root / name / "model", root / name / "adapter") as checkpoint:
        for key, tensor in expected.items():
            ours = checkpoint.read(key)
            assert ours.dtype == tensor.dtype
            torch.testing.assert_close(ours, tensor, rtol=1e-6 if ours.dtype == torch.float32 else 0.01, atol=1e-6)
            parts = torch.cat(list(checkpoint.blocks(key, 37)))
            torch.testing.assert_close(
                parts, ours.flatten(), rtol=1e-6 if ours.dtype == torch.float32 else 0.01, atol=1e-6
            )
        moved = sum(int((checkpoint.read(key) != tensor).sum()) for key, tensor in expected.items())
        assert moved < 0.002 * sum(tensor.numel() for tensor in expected.values()) or name != "rounded"


def test_a_merge_file_names_an_adapter_after_a_plus(root: Path, tmp_path: Path) -> None:
    folder = root / "plain"
    models = [{"model": f"{folder / 'model'}+{folder / 'adapter'}", "parameters": {"weight": 1}}]
    file = tmp_path / "merge.yml"
    file.write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    merge_file(file, tmp_path / "out", shard_bytes=10**9, seed=None, progress=lambda fraction, message: None)
    ours, expected = (load_file(each / "model.safetensors") for each in (tmp_path / "out", folder / "merged"))
    for key, tensor in expected.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-6, atol=1e-6)


def test_adapters_that_do_more_than_add_are_refused(root: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    source = root / "plain" / "adapter"
    (adapter / "adapter_model.safetensors").write_bytes((source / "adapter_model.safetensors").read_bytes())
    settings = json.loads((source / "adapter_config.json").read_text())
    for change in ({"use_dora": True}, {"peft_type": "IA3"}, {"bias": "all"}):
        (adapter / "adapter_config.json").write_text(json.dumps(settings | change))
        with pytest.raises(InvalidInputError):
            AdaptedCheckpoint.open_adapted(root / "plain" / "model", adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(IncompatibleModelsError):
        AdaptedCheckpoint.open_adapted(tiny_llama(tmp_path / "wide", hidden_size=24), adapter)
