"""Building: complete, in the declared dtype, byte for byte repeatable, and refusing what cannot work."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import MambaConfig, MambaForCausalLM, MixtralConfig, MixtralForCausalLM

from glue.checkpoints.manifest import build_manifest
from glue.mixture.load import load_model
from glue.mixture.router import RouterWeights
from glue.specs.errors import IncompatibleModelsError
from tests.support.mixtures import MixtureFolders, mix, prompts, random_router
from tests.support.models import VOCABULARY, tiny_llama, tiny_neox, tiny_tokenizer


def stored(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        found |= load_file(shard)
    return found


def config_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return value


def test_every_tensor_of_every_expert_is_there(built: MixtureFolders) -> None:
    tensors = stored(built.folder)
    for index, folder in enumerate(built.experts):
        for name, value in load_file(folder / "model.safetensors").items():
            assert torch.equal(tensors[f"experts.{index}.{name}"], value)
    router = random_router(3)
    assert torch.equal(tensors["sample_router.weight"], router.weight)
    assert torch.equal(tensors["sample_router.centre"], router.centre)
    assert torch.equal(tensors["sample_router.embedding"], tensors["experts.0.model.embed_tokens.weight"])


def test_tied_heads_are_written_untied(built: MixtureFolders) -> None:
    tensors = stored(built.folder)
    assert torch.equal(tensors["experts.0.lm_head.weight"], tensors["experts.0.model.embed_tokens.weight"])
    assert not any(expert["tie_word_embeddings"] for expert in config_of(built.folder)["experts"])


def test_the_config_tells_whole_and_part(built: MixtureFolders) -> None:
    config = config_of(built.folder)
    assert config["architectures"] == ["GlueModelMixtureForCausalLM"]
    assert config["expert_names"] == ["llama", "neox", "qwen3"]
    assert [expert["model_type"] for expert in config["experts"]] == ["llama", "gpt_neox", "qwen3"]
    assert config["num_hidden_layers"] == 3
    assert config["vocab_size"] == len(VOCABULARY)
    assert (config["pad_token_id"], config["eos_token_id"]) == (0, 1)
    assert str(built.folder.parent) not in (built.folder / "config.json").read_text()


def test_equal_inputs_give_equal_bytes(built: MixtureFolders, tmp_path: Path) -> None:
    again = mix(tmp_path / "again", built.experts)
    assert build_manifest(again) == build_manifest(built.folder)


def test_shards_load_and_a_killed_build_goes_on(built: MixtureFolders, model: Any, tmp_path: Path) -> None:
    folder = mix(tmp_path / "sharded", built.experts, shard_bytes=20_000)
    before = build_manifest(folder)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 3
    for gone in (shards[1], folder / "config.json", folder / "model.safetensors.index.json"):
        gone.unlink()
    mix(folder, built.experts, shard_bytes=20_000)
    assert build_manifest(folder) == before
    ids = prompts(4, 7)
    with torch.no_grad():
        assert torch.equal(load_model(folder, torch.float32, "cpu")(ids).logits, model(ids).logits)


def test_experts_in_another_dtype_and_the_router_in_its_own(built: MixtureFolders, tmp_path: Path) -> None:
    tensors = stored(mix(tmp_path / "half", built.experts, dtype="bfloat16"))
    dtypes = {name: value.dtype for name, value in tensors.items()}
    assert {dtype for name, dtype in dtypes.items() if name.startswith("experts.")} == {torch.bfloat16}
    assert {dtype for name, dtype in dtypes.items() if name.startswith("sample_router.")} == {torch.float32}
    assert config_of(tmp_path / "half")["dtype"] == "bfloat16"


def test_generation_ends_with_any_experts_end(tmp_path: Path) -> None:
    folders = [tiny_llama(tmp_path / "a"), tiny_neox(tmp_path / "b", eos_token_id=3), tiny_neox(tmp_path / "c")]
    folder = mix(tmp_path / "mixture", folders)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [1, 3]
    assert config_of(folder)["eos_token_id"] == [1, 3]


def test_an_expert_may_be_stored_in_another_form_than_it_runs(tmp_path: Path) -> None:
    # Mixtral's experts are stored one by one and fused on loading, also inside a mixture.
    folder = tmp_path / "mixtral"
    torch.manual_seed(4)
    config = MixtralConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer(folder)
    model: Any = load_model(mix(tmp_path / "mixture", [folder, tiny_llama(tmp_path / "a")]), torch.float32, "cpu")
    ids = prompts(1, 8)
    with torch.no_grad():
        found = model(ids, routing=torch.tensor([[1.0, 0.0]])).logits
        assert torch.equal(found, load_model(folder, torch.float32, "cpu")(ids).logits)


def test_an_incomplete_expert_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(IncompatibleModelsError, match=r"model\.norm\.weight"):
        mix(tmp_path / "mixture", [folder])
    assert not (tmp_path / "mixture" / "config.json").exists()


def test_an_expert_without_a_key_value_cache_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mamba"
    MambaForCausalLM(MambaConfig(vocab_size=99, hidden_size=16, num_hidden_layers=1)).save_pretrained(folder)
    tiny_tokenizer(folder)
    with pytest.raises(IncompatibleModelsError, match="mamba keeps no key-value cache"):
        mix(tmp_path / "mixture", [folder])


def test_an_embedding_too_small_for_the_tokenizer_is_refused(tmp_path: Path) -> None:
    folders = [tiny_llama(tmp_path / "a"), tiny_llama(tmp_path / "b", vocab_size=len(VOCABULARY) - 4)]
    with pytest.raises(IncompatibleModelsError, match="b has 95 rows"):
        mix(tmp_path / "mixture", folders)


def test_a_weight_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.inf
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(IncompatibleModelsError, match="norm"):
        mix(tmp_path / "mixture", [folder])


def test_a_router_of_another_shape_is_a_mistake(tmp_path: Path) -> None:
    folders = [tiny_llama(tmp_path / "a"), tiny_neox(tmp_path / "b")]
    with pytest.raises(ValueError, match="2 experts"):
        mix(tmp_path / "mixture", folders, random_router(3))
    with pytest.raises(ValueError, match="width 16"):
        mix(tmp_path / "mixture", folders, RouterWeights(torch.ones(2, 8), torch.zeros(8)))
    with pytest.raises(ValueError, match="1 to 2"):
        mix(tmp_path / "mixture", folders, top_k=3)


def test_the_copied_file_has_the_format_mark(built: MixtureFolders) -> None:
    with safe_open(built.folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_remote_code_of_an_expert_does_not_travel(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a")
    config = config_of(folder) | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('remote code ran')")
    out = mix(tmp_path / "mixture", [folder])
    assert "evil" not in (out / "config.json").read_text()
    assert not (out / "evil.py").exists()
    shutil.rmtree(folder)
    load_model(out, torch.float32, "cpu")
