"""What stands beside a mixture's weights: config, modelling file, tokenizer, generation settings. Knows no tensor."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from glue.checkpoints.disk import write_whole
from glue.mixture.modelling import Modelling
from glue.references.folders import CONFIG_FILE, GENERATION_CONFIG_FILE, TOKENIZER_FILES, read_config
from glue.references.reading import read_json

_MAX_SETTINGS_BYTES = 1024 * 1024
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_companions(
    out: Path,
    modelling: Modelling,
    config: PreTrainedConfig,
    experts: Sequence[Path],
    tokenizer_folder: Path,
    token: int,
) -> None:
    """Write everything but the weights of a mixture with a modelling file of ours, the config last.

    Generation settings are those of the model in `tokenizer_folder`; generation ends with the end token of any
    expert.

    Raises:
        DiskFullError: there is no space.
        IncompatibleModelsError: a settings file is not JSON.
    """
    _copy_tokenizer(tokenizer_folder, out, token)
    write_whole(out / modelling.file, modelling.source(), token)
    settings = _generation_settings(tokenizer_folder, experts)
    write_whole(out / GENERATION_CONFIG_FILE, _json(settings), token)
    config.architectures = [modelling.model.__name__]
    config.auto_map = modelling.auto_map()
    for name in _TOKEN_IDS:
        setattr(config, name, settings.get(name))
    write_whole(out / CONFIG_FILE, (config.to_json_string() + "\n").encode(), token)


def write_stock_companions(out: Path, config: PreTrainedConfig, tokenizer_folder: Path, token: int) -> None:
    """The same for a mixture of a stock architecture, which needs no modelling file.

    Raises:
        DiskFullError: there is no space.
        IncompatibleModelsError: a settings file is not JSON.
    """
    _copy_tokenizer(tokenizer_folder, out, token)
    write_whole(out / GENERATION_CONFIG_FILE, _json(_settings_of(tokenizer_folder)), token)
    write_whole(out / CONFIG_FILE, (config.to_json_string() + "\n").encode(), token)


def write_tokenizer(source: Path, out: Path, token: int) -> None:
    """Write the tokenizer of the model in `source` into a folder of its own, with what chooses its class.

    Raises:
        DiskFullError: there is no space.
        IncompatibleModelsError: a settings file is not JSON.
    """
    out.mkdir(parents=True, exist_ok=True)
    _copy_tokenizer(source, out, token)
    # transformers looks for a tokenizer's class in both; a config of ours knows none.
    write_whole(out / CONFIG_FILE, _json({"model_type": read_config(source).get("model_type")}), token)


def ends_of(folder: Path) -> list[int]:
    """The tokens after which a model's answers end.

    Raises:
        IncompatibleModelsError: a settings file is not JSON.
    """
    return _ends(_settings_of(folder))


def _copy_tokenizer(source: Path, out: Path, token: int) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            write_whole(out / name, (source / name).read_bytes(), token)


def _generation_settings(tokenizer_folder: Path, experts: Sequence[Path]) -> dict[str, Any]:
    settings = _settings_of(tokenizer_folder)
    ends = [end for folder in (tokenizer_folder, *experts) for end in _ends(_settings_of(folder))]
    unique = list(dict.fromkeys(ends))
    if unique:
        settings["eos_token_id"] = unique[0] if len(unique) == 1 else unique
    return settings


def _settings_of(folder: Path) -> dict[str, Any]:
    """A model's generation settings; where it has none, the token ids of its config."""
    path = folder / GENERATION_CONFIG_FILE
    if path.is_file():
        settings = read_json(path, _MAX_SETTINGS_BYTES)
        return {key: value for key, value in settings.items() if key not in {"_from_model_config"}}
    config = read_config(folder)
    return {name: config[name] for name in _TOKEN_IDS if config.get(name) is not None}


def _ends(settings: dict[str, Any]) -> list[int]:
    end = settings.get("eos_token_id")
    return end if isinstance(end, list) else [] if end is None else [end]


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
