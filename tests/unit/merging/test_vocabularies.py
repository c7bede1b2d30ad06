"""Vocabularies that differ: rows follow tokens by their text, in files, in nested merges and for every method."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from glue.checkpoints.reader import Checkpoint
from glue.merging.engine import evaluate
from glue.merging.merged_checkpoint import MergedCheckpoint
from glue.merging.mergekit_yaml import read_mergekit_file
from glue.merging.methods import all_methods, method_of
from glue.merging.registry import BaseUse
from glue.merging.run import merge_file, model_folders
from glue.specs.errors import IncompatibleModelsError
from glue.specs.expression import linear
from tests.support.models import VOCABULARY, char_tokenizer, tiny_llama

TOKENS = {"base": ["<one>", "<two>"], "a": ["<two>", "<three>"], "b": ["<four>", "<three>"]}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NEEDED: dict[str, dict[str, Any]] = {"slerp": {"t": 0.3}, "nearswap": {"t": 0.05}}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vocabularies")
    for seed, (name, tokens) in enumerate(TOKENS.items()):
        size = len(VOCABULARY) + len(tokens)
        tiny_llama(root / name, seed=seed, vocab_size=size, tie_word_embeddings=False, num_hidden_layers=1)
        tokenizer = char_tokenizer()
        tokenizer.add_tokens(tokens)
        tokenizer.save_pretrained(root / name)
    return root


def file_of(root: Path, name: str, **settings: Any) -> Path:
    method = method_of(settings["merge_method"])
    base = {} if method.base is BaseUse.NONE and not method.starts_at_base else {"base_model": str(root / "base")}
    parameters = {**NEEDED.get(method.name, {}), "weight": 0.5, "density": 0.5, "epsilon": 0.1}
    models = [{"model": str(root / each)} for each in ("a", "b")][: method.most]
    if method.starts_at_base:
        models = [{"model": str(root / "base")}, models[0]]
    path = root / f"{name}.yml"
    path.write_text(
        yaml.safe_dump({"dtype": "float32", "models": models, "parameters": parameters, **base, **settings})
    )
    return path


def written(file: Path, out: Path) -> Path:
    merge_file(file, out, shard_bytes=10**9, seed=1, progress=lambda fraction, message: None)
    return out


def rows_of(folder: Path, tensor: str = EMBEDDING) -> dict[str, Tensor]:
    value = load_file(folder / "model.safetensors")[tensor]
    vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(folder).get_vocab()
    return {token: value[row] for token, row in vocabulary.items()}


@pytest.mark.parametrize("tensor", [EMBEDDING, HEAD])
def test_a_union_averages_the_rows_of_those_that_have_a_token(zoo: Path, tmp_path: Path, tensor: str) -> None:
    out = written(file_of(zoo, "union", merge_method="linear", tokenizer_source="union"), tmp_path / "out")
    found = rows_of(out, tensor)
    a, b = (rows_of(zoo / name, tensor) for name in ("a", "b"))
    assert found.keys() == a.keys() | b.keys()
    for token, row in found.items():
        # Whoever lacks a token gets the row of the only other one, so that a mean of both is that row.
        holders = [rows[token] for rows in (a, b) if token in rows]
        torch.testing.assert_close(row, torch.stack(holders).mean(0))


def test_the_tokenizer_of_one_model_keeps_only_its_tokens(zoo: Path, tmp_path: Path) -> None:
    settings = {"merge_method": "task_arithmetic", "tokenizer": {"source": str(zoo / "a"), "pad_to_multiple_of": 32}}
    out = written(file_of(zoo, "one", **settings), tmp_path / "out")
    with Checkpoint.open(out) as merged:
        assert merged.config["vocab_size"] == merged.info(EMBEDDING).shape[0] == 128
    found, (base, a, b) = rows_of(out), (rows_of(zoo / name) for name in ("base", "a", "b"))
    assert found.keys() == a.keys()
    for token in VOCABULARY:
        torch.testing.assert_close(found[token], 0.5 * a[token] + 0.5 * b[token])
    # Model b lacks it and takes the base's row, so only a has moved.
    torch.testing.assert_close(found["<two>"], base["<two>"] + 0.5 * (a["<two>"] - base["<two>"]))


@pytest.mark.parametrize("name", sorted(all_methods()))
def test_a_nested_merge_reads_as_the_folder_that_it_would_become(name: str, zoo: Path, tmp_path: Path) -> None:
    file = file_of(zoo, name, merge_method=name, tokenizer_source="union")
    folder = written(file, tmp_path / "out")
    # A nested merge takes its seed from its own file.
    file = file_of(zoo, name, merge_method=name, tokenizer_source="union", parameters=_with_seed(file))
    nested = MergedCheckpoint.open_merged(
        read_mergekit_file(file), lambda reference: model_folders(reference, file.parent)
    )
    with nested, Checkpoint.open(folder) as stored:
        assert nested.tensors.keys() == stored.tensors.keys()
        assert nested.config["vocab_size"] == stored.config["vocab_size"]
        for tensor in stored.tensors:
            assert torch.equal(nested.read(tensor), stored.read(tensor))
        texts = [AutoTokenizer.from_pretrained(each.folder)("<one><two><three>").input_ids for each in (nested, stored)]
        assert texts[0] == texts[1]


def _with_seed(file: Path) -> dict[str, Any]:
    parameters: dict[str, Any] = yaml.safe_load(file.read_text())["parameters"]
    return {**parameters, "seed": 1}


def test_whole_models_of_other_vocabularies_are_trimmed_in_the_common_one(zoo: Path, tmp_path: Path) -> None:
    parameters = {"weight": 1.0, "density": 0.3, "trim": "model"}
    settings = {"merge_method": "ties", "tokenizer_source": "base", "parameters": parameters}
    out = written(file_of(zoo, "trimmed", **settings), tmp_path / "out")
    merged, base = (load_file(each / "model.safetensors") for each in (out, zoo / "base"))
    moved = sum(int((merged[name] != base[name]).sum()) for name in base)
    elements = sum(value.numel() for value in base.values())
    # Two models move three tenths each, partly the same elements.
    assert int(0.3 * elements) <= moved <= 2 * int(0.3 * elements)


def test_an_expression_over_other_numbers_of_rows_is_told_what_to_do(zoo: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "c", vocab_size=128, tie_word_embeddings=False, num_hidden_layers=1)
    checkpoints = {"a": Checkpoint.open(zoo / "a"), "c": Checkpoint.open(other)}
    with pytest.raises(IncompatibleModelsError, match=r"lm_head\.weight has shape") as caught:
        evaluate(linear({"a": 0.5, "c": 0.5}), checkpoints, EMBEDDING)
    assert {problem.fix for problem in caught.value.problems} == {
        "bring the vocabularies together first: glue merge with tokenizer_source: union, or base"
    }
