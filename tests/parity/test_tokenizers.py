"""Vocabularies that differ, as mergekit brings them together: the same row for every token of the result."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from glue.checkpoints.reader import Checkpoint
from glue.merging.run import merge_file
from tests.parity.test_mergekit import SHAPE
from tests.support.models import VOCABULARY, char_tokenizer
from tests.support.peer import is_installed, run_peer

pytestmark = pytest.mark.skipif(not is_installed(), reason="the peer is not installed; run `make peer`")

TOKENS = {"base": ["<one>", "<two>"], "a": ["<two>", "<three>"], "b": ["<four>", "<three>"]}
TIES = {"merge_method": "task_arithmetic", "base_model": "base"}
MODELS = [
    {"model": "a", "parameters": {"weight": 0.6}},
    {"model": "b", "parameters": {"weight": 0.3}},
    {"model": "base", "parameters": {"weight": 0.5}},
]
CASES: dict[str, dict[str, Any]] = {
    "union": {**TIES, "tokenizer_source": "union"},
    "base": {**TIES, "tokenizer_source": "base"},
    "model": {**TIES, "tokenizer": {"source": "a"}},
    "padded": {**TIES, "tokenizer": {"source": "union", "pad_to_multiple_of": 32}},
    "without-base": {"merge_method": "linear", "tokenizer_source": "union"},
    "overrides": {
        **TIES,
        "tokenizer": {
            "source": "union",
            "tokens": {
                "<one>": {"source": "base", "force": True},
                "<three>": {"source": "b"},
                "<four>": {"source": {"kind": "zero"}},
                "a": {"source": {"kind": "model_token", "model": "a", "token": "z"}, "force": True},
                "<new>": {"source": {"kind": "model_token", "model": "b", "token_id": 5}},
            },
        },
    },
}


def _zoo(root: Path) -> None:
    for seed, (name, tokens) in enumerate(TOKENS.items()):
        tokenizer = char_tokenizer()
        tokenizer.add_tokens(tokens)
        tokenizer.save_pretrained(root / name)
        torch.manual_seed(seed)
        shape = SHAPE | {"vocab_size": len(VOCABULARY) + len(tokens), "num_hidden_layers": 1}
        LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False)).save_pretrained(root / name)


def _placed(value: Any, root: Path, key: str = "") -> Any:
    if isinstance(value, list):
        return [_placed(part, root, key) for part in value]
    if isinstance(value, dict):
        return {inner: _placed(part, root, inner) for inner, part in value.items()}
    return str(root / value) if key in {"model", "base_model", "source"} and value in TOKENS else value


@pytest.fixture(scope="module")
def outs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    root = tmp_path_factory.mktemp("vocabularies")
    _zoo(root)
    files = {}
    for name, case in CASES.items():
        files[name] = root / f"{name}.yml"
        files[name].write_text(yaml.safe_dump(_placed({"models": MODELS, "dtype": "float32", **case}, root)))
    outs = {name: (root / f"{name}-ours", root / f"{name}-theirs") for name in CASES}
    errors = run_peer([(files[name], outs[name][1]) for name in CASES], root)
    assert not any(errors.values()), errors
    for name, file in files.items():
        merge_file(file, outs[name][0], shard_bytes=10**9, seed=None, progress=lambda fraction, message: None)
    return outs


def _rows(folder: Path, tensor: str) -> tuple[dict[str, Tensor], Tensor]:
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    with Checkpoint.open(folder) as checkpoint:
        rows = checkpoint.read(tensor)
        assert rows.shape[0] == checkpoint.config["vocab_size"]
    return {token: rows[row] for token, row in vocabulary.items()}, rows[len(vocabulary) :]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tensor", ["model.embed_tokens.weight", "lm_head.weight"])
def test_every_token_has_the_same_row(outs: dict[str, tuple[Path, Path]], name: str, tensor: str) -> None:
    (ours, padding), (theirs, their_padding) = (_rows(folder, tensor) for folder in outs[name])
    assert ours.keys() == theirs.keys()
    for token, row in ours.items():
        torch.testing.assert_close(row, theirs[token], rtol=1e-5, atol=1e-6, msg=f"{token}: {row} {theirs[token]}")
    torch.testing.assert_close(padding, their_padding, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_tokenizer_is_the_same_and_the_model_runs(outs: dict[str, tuple[Path, Path]], name: str) -> None:
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in outs[name])
    text = "a<one>b<two>c"
    assert ours.tokenize(text) == theirs.tokenize(text)
    assert ours.decode(ours(text).input_ids) == theirs.decode(theirs(text).input_ids)
    model, loading = LlamaForCausalLM.from_pretrained(outs[name][0], output_loading_info=True)
    assert not any(loading.values())
    assert model(**ours(text, return_tensors="pt", return_token_type_ids=False)).logits.isfinite().all()
