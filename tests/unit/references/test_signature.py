"""Signatures and tokenizer digests: equal for the same thing in another spelling, different for another thing."""

import json
from pathlib import Path
from typing import Any

import pytest

from glue.references.headers import folder_tensors
from glue.references.signature import signature, tokenizer_digest
from glue.specs.errors import IncompatibleModelsError
from tests.support.model_folders import LLAMA, LLAMA_TENSORS, TOKENIZER, Tensors, write_model

OLD_LLAMA = {key: value for key, value in LLAMA.items() if key != "rope_parameters"}


def signed(folder: Path, config: dict[str, Any] = LLAMA, tensors: Tensors = LLAMA_TENSORS) -> str:
    write_model(folder, config, tensors)
    return signature(config, folder_tensors(folder))


@pytest.mark.parametrize(
    "config",
    [
        OLD_LLAMA,
        OLD_LLAMA | {"rope_theta": 10000, "rope_scaling": None},
        LLAMA | {"num_key_value_heads": 2, "head_dim": 4},
        LLAMA | {"max_position_embeddings": 7, "torch_dtype": "float16", "transformers_version": "1"},
    ],
)
def test_other_spellings_are_the_same_model(tmp_path: Path, config: dict[str, Any]) -> None:
    assert signed(tmp_path / "a", config) == signed(tmp_path / "b")


@pytest.mark.parametrize(
    "config",
    [
        LLAMA | {"architectures": ["MistralForCausalLM"]},
        OLD_LLAMA | {"rope_theta": 500000.0},
        OLD_LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}},
        LLAMA | {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 2.0}},
        LLAMA | {"num_attention_heads": 4},
        LLAMA | {"num_key_value_heads": 1},
    ],
)
def test_other_models_have_other_signatures(tmp_path: Path, config: dict[str, Any]) -> None:
    assert signed(tmp_path / "a", config) != signed(tmp_path / "b")


def test_scaling_is_the_same_before_and_after_transformers_5(tmp_path: Path) -> None:
    old = OLD_LLAMA | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}
    new = OLD_LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500000}}
    assert signed(tmp_path / "a", old) == signed(tmp_path / "b", new)


def test_partial_rotation_is_the_same_before_and_after_transformers_5(tmp_path: Path) -> None:
    old = OLD_LLAMA | {"rotary_pct": 0.25, "rotary_emb_base": 10000}
    new = OLD_LLAMA | {
        "rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 10000.0, "rope_type": "default"}
    }
    assert signed(tmp_path / "a", old) == signed(tmp_path / "b", new)


def test_settings_per_kind_of_layer_count(tmp_path: Path) -> None:
    def config(theta: float) -> dict[str, Any]:
        return OLD_LLAMA | {"rope_parameters": {"full": {"rope_theta": theta}, "sliding": {"rope_theta": 1e4}}}

    assert signed(tmp_path / "a", config(1e6)) != signed(tmp_path / "b", config(1e5))
    assert signed(tmp_path / "a", config(1e6)) == signed(tmp_path / "b", config(1000000))


def test_vocabulary_rows_are_left_aside(tmp_path: Path) -> None:
    def resized(rows: int) -> Tensors:
        vocabulary = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), ("F32", (rows, 8)))
        return dict(LLAMA_TENSORS) | vocabulary

    assert signed(tmp_path / "a", LLAMA | {"vocab_size": 20}, resized(20)) == signed(tmp_path / "b")


def test_a_matrix_inside_a_layer_counts_even_with_the_vocabularys_size(tmp_path: Path) -> None:
    other = dict(LLAMA_TENSORS) | {"model.layers.0.mlp.up_proj.weight": ("F32", (20, 8))}
    assert signed(tmp_path / "a", LLAMA, other) != signed(tmp_path / "b")


@pytest.mark.parametrize(
    "tensors",
    [
        {key: value for key, value in LLAMA_TENSORS.items() if key != "lm_head.weight"},
        dict(LLAMA_TENSORS) | {"extra": ("F32", (1,))},
        dict(LLAMA_TENSORS) | {"model.norm.weight": ("F32", (4,))},
        dict(LLAMA_TENSORS) | {"lm_head.weight": ("F32", (16, 4))},
    ],
)
def test_other_tensors_have_other_signatures(tmp_path: Path, tensors: Tensors) -> None:
    assert signed(tmp_path / "a", LLAMA, tensors) != signed(tmp_path / "b")


def test_constants_that_older_releases_saved_do_not_count(tmp_path: Path) -> None:
    constants = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (2,)),
        "gpt_neox.layers.0.attention.bias": ("BOOL", (1, 1, 4, 4)),
        "transformer.h.0.attn.masked_bias": ("F32", ()),
        "embeddings.position_ids": ("I64", (1, 4)),
    }
    assert signed(tmp_path / "a", LLAMA, dict(LLAMA_TENSORS) | constants) == signed(tmp_path / "b")


def test_a_tied_head_that_was_saved_again_does_not_count(tmp_path: Path) -> None:
    tied = LLAMA | {"tie_word_embeddings": True}
    without = {name: value for name, value in LLAMA_TENSORS.items() if name != "lm_head.weight"}
    assert signed(tmp_path / "a", tied) == signed(tmp_path / "b", tied, without)
    assert signed(tmp_path / "c", tied) != signed(tmp_path / "d")


@pytest.mark.parametrize("name", ["model.layers.0.attention.dense.bias", "model.layers.0.attn.c_attn.bias", "bias"])
def test_biases_are_parameters(tmp_path: Path, name: str) -> None:
    assert signed(tmp_path / "a", LLAMA, dict(LLAMA_TENSORS) | {name: ("F32", (8,))}) != signed(tmp_path / "b")


def test_the_dtype_does_not_count(tmp_path: Path) -> None:
    half = {name: ("BF16", shape) for name, (_, shape) in LLAMA_TENSORS.items()}
    assert signed(tmp_path / "a", LLAMA, half) == signed(tmp_path / "b")


class TestTokenizerDigest:
    def test_run_time_settings_do_not_count(self, tmp_path: Path) -> None:
        plain = write_model(tmp_path / "a")
        padded = write_model(tmp_path / "b", tokenizer=TOKENIZER | {"padding": {"pad_id": 0}, "truncation": {"x": 1}})
        (padded / "tokenizer_config.json").write_text('{"model_max_length": 9, "pad_token": "x"}')
        assert tokenizer_digest(plain) == tokenizer_digest(padded)

    @pytest.mark.parametrize(
        "tokenizer",
        [TOKENIZER | {"model": {"type": "WordLevel", "vocab": {"a": 1, "b": 0}}}, TOKENIZER | {"normalizer": 1}],
    )
    def test_other_ids_count(self, tmp_path: Path, tokenizer: dict[str, Any]) -> None:
        plain, other = write_model(tmp_path / "a"), write_model(tmp_path / "b", tokenizer=tokenizer)
        assert tokenizer_digest(plain) != tokenizer_digest(other)

    def test_tokens_put_in_front_count(self, tmp_path: Path) -> None:
        plain, other = write_model(tmp_path / "a"), write_model(tmp_path / "b")
        (other / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
        assert tokenizer_digest(plain) != tokenizer_digest(other)

    def test_a_slow_tokenizer_will_do(self, tmp_path: Path) -> None:
        folders = [write_model(tmp_path / name, tokenizer=None) for name in "abc"]
        for folder, content in zip(folders, ("x", "x", "y"), strict=True):
            (folder / "tokenizer.model").write_text(content)
        first, second, third = (tokenizer_digest(folder) for folder in folders)
        assert first == second != third

    def test_none_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(IncompatibleModelsError) as error:
            tokenizer_digest(write_model(tmp_path, tokenizer=None))
        assert error.value.problems[0].code == "no_tokenizer"
