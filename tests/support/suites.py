"""Task folders over local JSON Lines, written as a user writes them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import yaml


def write_items(path: Path, items: Sequence[Mapping[str, Any]]) -> Path:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def write_task(folder: Path, name: str, items: Sequence[Mapping[str, Any]], **config: Any) -> Path:
    """A task's YAML and its data; keys of `config` are added, or taken away when they are None."""
    data = write_items(folder / f"{name}.jsonl", items)
    base = {
        "task": name,
        "dataset_path": "json",
        # Absolute, because lm-eval itself resolves a relative path against the working directory.
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
    }
    merged = {key: value for key, value in (base | config).items() if value is not None}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(merged, sort_keys=False), encoding="utf-8")
    return path


def choice_task(folder: Path, name: str, count: int, seed: int = 0, letters: int = 3, **config: Any) -> Path:
    """Multiple choice over four answers of up to `letters` letters each."""
    random = Random(f"{name} {seed}")
    items = [
        {
            "question": f"{_word(random, 6)} {number}:",
            "answers": [_word(random, letters) for _ in range(4)],
            "right": random.randrange(4),
        }
        for number in range(count)
    ]
    settings = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "answers",
        "doc_to_target": "right",
        "metric_list": [_mean("acc"), _mean("acc_norm")],
    }
    return write_task(folder, name, items, **settings | config)


def text_task(folder: Path, name: str, count: int, seed: int = 0, words: int = 12, **config: Any) -> Path:
    """Perplexity of whole texts."""
    random = Random(f"{name} {seed}")
    items = [{"text": " ".join(_word(random, 5) for _ in range(random.randint(1, words)))} for _ in range(count)]
    settings = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    return write_task(folder, name, items, **settings | config)


def writing_task(folder: Path, name: str, count: int, seed: int = 0, **config: Any) -> Path:
    """Generation until a line ends, exact match with a sum."""
    random = Random(f"{name} {seed}")
    pairs = [(random.randrange(10 ** random.randint(1, 6)), random.randrange(100)) for _ in range(count)]
    items = [{"prompt": f"{first}+{second}=", "sum": str(first + second)} for first, second in pairs]
    settings = {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{sum}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12},
        "metric_list": [_mean("exact_match")],
    }
    return write_task(folder, name, items, **settings | config)


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _word(random: Random, letters: int) -> str:
    return "".join(random.choice("abcdefghij") for _ in range(random.randint(1, letters)))
