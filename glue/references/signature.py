"""What must be equal for two models to be merged tensor by tensor, and for two tokenizers to be one.

Knows configs and headers only, never a tensor's values.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from glue.references.headers import TensorInfo
from glue.references.reading import parse_json, read_bytes, read_json, refusal
from glue.specs.digests import digest_of

MAX_TOKENIZER_BYTES = 256 * 1024 * 1024

_SLOW_TOKENIZER_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")
# One of these makes a folder's tokenizer.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TOKENIZER_SETTINGS = ("add_bos_token", "add_eos_token", "bos_token")
_ROPE_NAMES = {
    "rope_theta": ("rope_theta", "rotary_emb_base"),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct"),
    "rope_type": ("rope_type", "type"),
}
# What transformers takes where a config is silent; an old config and its newer copy are the same model.
_ROPE_DEFAULTS = {"rope_theta": 10_000.0, "rope_type": "default"}
_OTHER_POSITIONS = ("position_embedding_type", "alibi", "use_alibi", "rope_interleaved", "no_rope_layers")
# Constants that older releases saved beside the parameters: rotary frequencies, causal masks, position numbers.
_CONSTANTS = re.compile(r"(rotary_emb\.inv_freq|\.(attn|attention)\.(bias|masked_bias)|(^|\.)position_ids)$")
# With tied embeddings some save the head a second time.
_TIED_HEAD = re.compile(r"^(lm_head|embed_out)\.weight$")
_HEADS = ("num_attention_heads", "n_head", "num_heads")


def signature(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str:
    """sha256 that is equal for models that can be merged tensor by tensor.

    Over the architecture class, the parameters' names and shapes with vocabulary rows left aside, the attention
    heads (they decide what a projection's rows mean) and the position-encoding settings.
    """
    return digest_of(signature_parts(config, tensors))


def signature_parts(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """What a signature is the digest of."""
    vocabulary = config.get("vocab_size")
    aside = (_CONSTANTS, _TIED_HEAD) if config.get("tie_word_embeddings") is True else (_CONSTANTS,)
    parameters = {name: info for name, info in tensors.items() if not any(pattern.search(name) for pattern in aside)}
    return {
        "architecture": architecture(config),
        "tensors": {name: _shape(info, vocabulary) for name, info in parameters.items()},
        "heads": _heads(config),
        "positions": position_settings(config),
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """In words, what keeps two models with these parts of signatures from being merged tensor by tensor."""
    if one["architecture"] != other["architecture"]:
        yield f"architecture {one['architecture']} and {other['architecture']}"
    yield from _unlike_tensors(one["tensors"], other["tensors"])
    for part, label in (("heads", "attention heads"), ("positions", "positions")):
        mine, others = _flat(one[part]), _flat(other[part])
        for key in sorted(mine.keys() | others.keys()):
            if mine.get(key) != others.get(key):
                yield f"{label}: {key} {mine.get(key)} and {others.get(key)}"


def architecture(config: Mapping[str, Any]) -> str:
    """The model class that the config names, such as `LlamaForCausalLM`; empty where it names none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def position_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """How positions are encoded, in one form for the spellings of all transformers versions.

    Before version 5 `rope_theta` stands in the config and `rope_scaling` beside it; since then both are in
    `rope_parameters`, which some architectures give per kind of layer.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    per_kind = isinstance(rope, dict) and bool(rope) and all(isinstance(value, dict) for value in rope.values())
    kinds = {str(kind): _rope(config, value) for kind, value in rope.items()} if per_kind else _rope(config, rope)
    return {"rope": kinds} | {key: config[key] for key in _OTHER_POSITIONS if config.get(key) is not None}


def tokenizer_digest(folder: Path) -> str:
    """sha256 that is equal for tokenizers that give the same ids for the same text.

    Over tokenizer.json with its padding and truncation left aside, else over the slow tokenizer's files;
    and over the settings that put tokens in front or behind.

    Raises:
        IncompatibleModelsError: the folder has no tokenizer, or its files cannot be read.
    """
    settings = _tokenizer_settings(folder)
    if (folder / "tokenizer.json").is_file():
        fast = parse_json(read_bytes(folder / "tokenizer.json", MAX_TOKENIZER_BYTES), "tokenizer.json")
        kept = {key: value for key, value in fast.items() if key not in {"padding", "truncation"}}
        return digest_of({"fast": kept, "settings": settings})
    present = [name for name in _SLOW_TOKENIZER_FILES if (folder / name).is_file()]
    if not present:
        raise refusal("no_tokenizer", "the folder has no tokenizer", "save the model's tokenizer beside it")
    names = (*present, "added_tokens.json")
    return digest_of({"slow": dict(_file_digests(folder, names)), "settings": settings})


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in the folder, fast or slow."""
    return any((folder / name).is_file() for name in _TOKENIZERS)


def has_chat_template(folder: Path) -> bool:
    """Whether a template for chats lies beside the folder's tokenizer.

    Raises:
        IncompatibleModelsError: the tokenizer's settings cannot be read.
    """
    path = folder / "tokenizer_config.json"
    settings = read_json(path, MAX_TOKENIZER_BYTES) if path.is_file() else {}
    files = any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json"))
    return files or bool(settings.get("chat_template"))


def _unlike_tensors(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    alone = sorted(one.keys() ^ other.keys())
    if alone:
        yield f"{len(alone)} tensors that only one of them has, such as {alone[0][:100]}"
    unlike = [name for name in one if name in other and one[name] != other[name]]
    if unlike:
        first = unlike[0]
        yield f"{len(unlike)} tensors of other shapes, such as {first[:100]}: {one[first]} and {other[first]}"


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat


def _shape(tensor: TensorInfo, vocabulary: Any) -> list[int | str]:
    inside_a_layer = re.search(r"\.\d+\.", tensor.name) is not None
    if tensor.shape and tensor.shape[0] == vocabulary and not inside_a_layer:
        return ["vocabulary", *tensor.shape[1:]]
    return list(tensor.shape)


def _heads(config: Mapping[str, Any]) -> dict[str, Any]:
    heads = _first(config, _HEADS)
    key_value = config.get("num_key_value_heads") or heads
    hidden = _first(config, ("hidden_size", "n_embd"))
    default = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None
    return {"query": heads, "key_value": key_value, "size": config.get("head_dim") or default}


def _rope(config: Mapping[str, Any], rope: Any) -> dict[str, Any]:
    inner = rope if isinstance(rope, dict) else {}
    spellings = {spelling for names in _ROPE_NAMES.values() for spelling in names}
    settings = {key: value for key, value in inner.items() if key not in spellings and value is not None}
    for key, names in _ROPE_NAMES.items():
        value = _first(inner, names)
        if value is None and key != "rope_type":
            value = _first(config, names)
        settings[key] = _ROPE_DEFAULTS.get(key) if value is None else value
    return {key: float(value) if type(value) is int else value for key, value in settings.items()}


def _first(mapping: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((mapping[name] for name in names if mapping.get(name) is not None), None)


def _tokenizer_settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    config = read_json(path, MAX_TOKENIZER_BYTES) if path.is_file() else {}
    return {key: _token_text(config.get(key)) for key in _TOKENIZER_SETTINGS}


def _token_text(value: Any) -> Any:
    # A special token is written as text or as an object with its `content`.
    return value.get("content") if isinstance(value, dict) else value


def _file_digests(folder: Path, names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        if (folder / name).is_file():
            yield name, hashlib.sha256(read_bytes(folder / name, MAX_TOKENIZER_BYTES)).hexdigest()
