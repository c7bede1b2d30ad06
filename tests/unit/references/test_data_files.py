"""Which files of a repository hold which split."""

from typing import Any

import pytest

from glue.references.data_files import DataNeed, split_files
from glue.specs.errors import InvalidInputError


def need(*splits: str, name: str | None = None, **more: Any) -> DataNeed:
    return DataNeed("org/data", "main", name, splits, **more)


def test_the_cards_configuration_decides() -> None:
    card = {
        "configs": [
            {"config_name": "ARC-Easy", "data_files": [{"split": "test", "path": "ARC-Easy/test-*"}]},
            {"config_name": "ARC-Challenge", "data_files": [{"split": "test", "path": ["ARC-Challenge/**"]}]},
        ]
    }
    paths = ["ARC-Easy/test-00000-of-00001.parquet", "ARC-Challenge/sub/a.parquet", "README.md"]
    assert split_files(paths, card, need("test", name="ARC-Easy")) == {"test": (paths[0],)}
    assert split_files(paths, card, need("test", name="ARC-Challenge")) == {"test": (paths[1],)}
    with pytest.raises(InvalidInputError, match="no configuration 'x'; its configurations are: ARC-Challenge, ARC-E"):
        split_files(paths, card, need("test", name="x"))
    with pytest.raises(InvalidInputError, match="several configurations"):
        split_files(paths, card, need("test"))


def test_shards_and_words_in_names_decide_without_a_card() -> None:
    shards = [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/dev-00000-of-00001.parquet",
    ]
    assert split_files(shards, {}, need("train", "dev")) == {"train": (shards[0], shards[1]), "dev": (shards[2],)}
    words = ["my_training_set.jsonl", "valid.jsonl", "eval/items.jsonl"]
    found = split_files(words, {}, need("train", "validation", "test"))
    assert found == {"train": (words[0],), "validation": (words[1],), "test": (words[2],)}
    assert split_files(["items.csv", "notes.txt"], {}, need("train")) == {"train": ("items.csv",)}


def test_the_branch_of_converted_data_is_laid_out_by_configuration_and_split() -> None:
    paths = ["all/dev/0000.parquet", "all/test/0000.parquet", "all/test/0001.parquet", "other/test/0000.parquet"]
    assert split_files(paths, {}, need("dev", "test", name="all")) == {"dev": (paths[0],), "test": (paths[1], paths[2])}


def test_a_task_may_name_the_files_or_a_folder_itself() -> None:
    paths = ["en/test.jsonl", "de/test.jsonl"]
    assert split_files(paths, {}, need("test", folder="de")) == {"test": ("de/test.jsonl",)}
    assert split_files(paths, {}, need("x", files={"x": "en/*.jsonl"})) == {"x": ("en/test.jsonl",)}


@pytest.mark.parametrize(
    ("paths", "wanted", "message"),
    [
        (["data.py", "README.md"], need("test"), "made by a script, and scripts never run; set the task's revision"),
        (["README.md", "a.zip"], need("test"), "no parquet, json or csv file"),
        (["test.csv", "train.csv"], need("dev"), "no split 'dev'; its splits are: test, train"),
    ],
)
def test_what_cannot_be_read_is_told_with_a_fix(paths: list[str], wanted: DataNeed, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        split_files(paths, {}, wanted)
