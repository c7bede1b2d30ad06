"""What tasks read from the Hub: lm-eval's own by their configuration, the paper's by a table. Opens nothing."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from glue.references.data_files import DataNeed
from glue.references.hub_names import DEFAULT_REVISION
from glue.specs.errors import InvalidInputError, Problem

_ARC = DataNeed("allenai/ai2_arc", DEFAULT_REVISION, "ARC-Challenge", ("train", "test"))
_GSM8K = DataNeed("openai/gsm8k", DEFAULT_REVISION, "main", ("train", "test"))
_WINOGRANDE = DataNeed("allenai/winogrande", DEFAULT_REVISION, "winogrande_xl", ("train", "validation"))
_MBPP = DataNeed("google-research-datasets/mbpp", DEFAULT_REVISION, "full", ("prompt", "test"))

# A preset's task: its splits `test` and `shots`, each as a need with one split.
PRESET_DATA: Mapping[str, Mapping[str, DataNeed]] = {
    "paper_tiny_arc": {
        "test": DataNeed("tinyBenchmarks/tinyAI2_arc", DEFAULT_REVISION, "ARC-Challenge", ("test",)),
        "shots": replace(_ARC, splits=("train",)),
    },
    "paper_tiny_mmlu": {"test": DataNeed("tinyBenchmarks/tinyMMLU", DEFAULT_REVISION, "all", ("test",))},
    "paper_tiny_gsm8k": {
        "test": DataNeed("tinyBenchmarks/tinyGSM8k", DEFAULT_REVISION, "main", ("test",)),
        "shots": replace(_GSM8K, splits=("train",)),
    },
    "paper_tiny_winogrande": {
        "test": DataNeed("tinyBenchmarks/tinyWinogrande", DEFAULT_REVISION, "winogrande_xl", ("validation",)),
        "shots": replace(_WINOGRANDE, splits=("train",)),
    },
    "paper_mbpp_validation": {
        "test": replace(_MBPP, splits=("validation",)),
        "shots": replace(_MBPP, splits=("prompt",)),
    },
    "paper_humanevalpack_js": {
        "test": DataNeed(
            "bigcode/humanevalpack",
            DEFAULT_REVISION,
            "js",
            ("test",),
            # The repository's script reads this file; the script itself never runs.
            files={"test": "data/js/data/humanevalpack.jsonl"},
        )
    },
    "paper_arc": {"test": replace(_ARC, splits=("test",)), "shots": replace(_ARC, splits=("train",))},
    "paper_gsm8k": {"test": replace(_GSM8K, splits=("test",)), "shots": replace(_GSM8K, splits=("train",))},
    "paper_winogrande": {
        "test": replace(_WINOGRANDE, splits=("validation",)),
        "shots": replace(_WINOGRANDE, splits=("train",)),
    },
    "paper_mbpp": {"test": replace(_MBPP, splits=("test",)), "shots": replace(_MBPP, splits=("prompt",))},
    "paper_humaneval": {
        "test": DataNeed("openai/openai_humaneval", DEFAULT_REVISION, "openai_humaneval", ("test",)),
    },
}
# The prompts of MMLU's items, which the tiny set brings along, are made as lm-eval's own tasks make them.
PRESET_GROUPS: Mapping[str, tuple[str, int]] = {"paper_mmlu": ("mmlu", 5)}


def evaluated_split(name: str, config: Mapping[str, Any]) -> str:
    """The split whose items are scored.

    Raises:
        InvalidInputError: the configuration names none.
    """
    split = config.get("test_split") or config.get("validation_split")
    if split is None:
        raise refusal(name, "it has no split to score", "choose another task")
    return str(split)


def shots_split(name: str, config: Mapping[str, Any], shots: int) -> str | None:
    """The split that examples come from, in lm-eval's order; none without examples, or if they are written down.

    Raises:
        InvalidInputError: they would come from the items that are scored, and could hold an item's own answer.
    """
    if shots == 0:
        return None
    given = config.get("fewshot_config") or {}
    named = given.get("split") or config.get("fewshot_split")
    if named is None and given.get("samples") is not None:
        return None
    source = named or config.get("training_split") or config.get("validation_split") or config.get("test_split")
    # lm-eval keeps an item out of its own examples only where a split for examples is named, and is the test split.
    if source == evaluated_split(name, config) and (named is None or named != config.get("test_split")):
        detail = "its examples come from the evaluated split and would hold the answer"
        raise refusal(name, detail, "set num_fewshot: 0, or choose another task")
    return str(source)


def shots_of(config: Mapping[str, Any], asked: int | None) -> int:
    """How many examples precede an item."""
    return int(config.get("num_fewshot") or 0) if asked is None else asked


def need_of(name: str, config: Mapping[str, Any], shots: int, revision: str | None) -> DataNeed:
    """What one of lm-eval's own tasks reads.

    Raises:
        InvalidInputError: it has no split to score, or examples would give answers away.
    """
    settings = config.get("dataset_kwargs") or {}
    splits = dict.fromkeys([evaluated_split(name, config), shots_split(name, config, shots)])
    return DataNeed(
        str(config["dataset_path"]),
        revision or str(settings.get("revision") or DEFAULT_REVISION),
        config.get("dataset_name"),
        tuple(split for split in splits if split is not None),
        folder=settings.get("data_dir"),
        files=settings.get("data_files"),
    )


def refusal(name: str, detail: str, fix: str) -> InvalidInputError:
    """That a task cannot be used, and what to do."""
    whole = f"lm-eval's task {name}: {detail}"
    return InvalidInputError(f"{whole}; {fix}", [Problem("", "task_refused", whole, fix)])
