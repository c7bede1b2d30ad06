"""What stands beside the weights: config, tokenizer, generation settings. Knows nothing of tensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glue.checkpoints.disk import write_whole
from glue.references.folders import CONFIG_FILE, GENERATION_CONFIG_FILE, TOKENIZER_FILES
from glue.references.reading import read_json

_MAX_TOKENIZER_BYTES = 256 * 1024 * 1024
# Where a merge was made says nothing about it, and these would carry a path or a version into the artifact.
_LEFT_OUT = ("_name_or_path", "torch_dtype", "auto_map")


def saved_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config of a model with these settings stored in `dtype`, as transformers 5 names it."""
    kept = {key: _with_dtype(value, dtype) for key, value in config.items() if key not in _LEFT_OUT}
    return kept | {"dtype": dtype}


def copy_companions(source: Path, out: Path, token: int) -> None:
    """Copy the tokenizer's files and the generation settings from a model folder.

    Raises:
        DiskFullError: there is no space.
    """
    for name in (*TOKENIZER_FILES, GENERATION_CONFIG_FILE):
        if (source / name).is_file():
            write_whole(out / name, (source / name).read_bytes(), token)


def write_config(out: Path, config: Mapping[str, Any], token: int) -> None:
    """Write a model's config.json durably, in transformers' form.

    Raises:
        DiskFullError: there is no space.
    """
    write_whole(out / CONFIG_FILE, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(), token)


def highest_token_id(folder: Path) -> int | None:
    """The highest id that the folder's tokenizer can give; none where no file tells it in plain JSON."""
    ids: list[int] = []
    if (folder / "tokenizer.json").is_file():
        tokenizer = read_json(folder / "tokenizer.json", _MAX_TOKENIZER_BYTES)
        ids += _model_ids(tokenizer.get("model", {}).get("vocab"))
        ids += [token["id"] for token in tokenizer.get("added_tokens", [])]
    else:
        for name in ("vocab.json", "added_tokens.json"):
            if (folder / name).is_file():
                ids += list(read_json(folder / name, _MAX_TOKENIZER_BYTES).values())
    return max(ids, default=None)


def _model_ids(vocabulary: Any) -> list[int]:
    if isinstance(vocabulary, dict):
        return list(vocabulary.values())
    # A unigram model lists its pieces; the position is the id.
    return list(range(len(vocabulary or ())))


def _with_dtype(value: Any, dtype: str) -> Any:
    if not isinstance(value, dict):
        return value
    renamed = {key: _with_dtype(inner, dtype) for key, inner in value.items() if key != "torch_dtype"}
    return renamed | {"dtype": dtype} if {"dtype", "torch_dtype"} & value.keys() else renamed
