"""LoRA adapters as folders: what they say of themselves, and whether they fit a model. Names and shapes, no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glue.references.folders import ADAPTER_FILE, CONFIG_FILE, MAX_CONFIG_BYTES
from glue.references.headers import INDEX_FILE, SINGLE_FILE, TensorInfo, read_header
from glue.references.reading import read_json, refusal
from glue.specs.errors import IncompatibleModelsError, InvalidInputError, Problem

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLED_ADAPTER = "adapter_model.bin"

_PREFIX = "base_model.model."
_PART = re.compile(r"^(?P<module>.*)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(\.default)?(\.weight)?$")
# What a LoRA of these kinds does is more than W + s B A.
_UNSUPPORTED = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "arrow_config",
)
# Alphas may be given for modules by regular expressions.
_MAX_PATTERNS, _MAX_NAME, _MAX_QUANTIFIERS = 10_000, 300, 2
_SIMPLE = re.compile(r"\^?(?:\w|-|\\?\.|\\d\+|\.\*)+\$?")


@dataclass(frozen=True)
class Side:
    """One of the two matrices whose product changes a module's weight; `side` is A or B."""

    module: str
    side: str
    on_embedding: bool


@dataclass(frozen=True)
class AdapterTensors:
    """An adapter's tensors: those that replace a whole weight, by the weight's name, and the sides by their own."""

    replaced: Mapping[str, TensorInfo]
    sides: Mapping[str, tuple[Side, TensorInfo]]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    whole = any((folder / name).exists() for name in (SINGLE_FILE, INDEX_FILE))
    return (folder / ADAPTER_FILE).is_file() and not whole and not _holds_a_pickled_model(folder)


def _holds_a_pickled_model(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and any(folder.glob("pytorch_model*.bin"))


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The adapter's own settings.

    Raises:
        InvalidInputError: it is no LoRA, or one of a kind that is not supported, or not stored as safetensors.
        IncompatibleModelsError: its config is damaged.
    """
    if not (folder / ADAPTER_FILE).is_file():
        raise _unsupported(f"{folder.name} has no {ADAPTER_FILE}: it is no adapter", "give the adapter's folder")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        fix = "save the adapter as safetensors"
        raise _unsupported(f"{folder.name} has no {ADAPTER_WEIGHTS}", fix)
    settings = read_json(folder / ADAPTER_FILE, MAX_CONFIG_BYTES)
    if settings.get("peft_type") != "LORA":
        detail = f"{folder.name} is an adapter of type {str(settings.get('peft_type'))[:100]}, only LORA is supported"
        raise _unsupported(detail, "merge it into its base with PEFT first")
    used = [key for key in _UNSUPPORTED if settings.get(key)]
    if settings.get("bias", "none") != "none":
        used.append("bias")
    if used:
        raise _unsupported(f"{folder.name} uses {', '.join(used)}", "merge it into its base with PEFT first")
    patterns = settings.get("alpha_pattern") or {}
    _check_patterns(folder.name, patterns)
    if not all(type(alpha) in (int, float) for alpha in (settings.get("lora_alpha"), *patterns.values())):
        raise _unsupported(f"{folder.name} has no lora_alpha, or one that is no number", "save the adapter with PEFT")
    return settings


def _check_patterns(name: str, patterns: Any) -> None:
    if not isinstance(patterns, dict) or len(patterns) > _MAX_PATTERNS:
        raise _unsupported(f"{name} has no alpha_pattern that can be read", "merge it into its base with PEFT first")
    for pattern in patterns:
        if not _is_quick(pattern):
            detail = f"{name} has the alpha_pattern {pattern[:100]!r}, which is no simple expression"
            raise _unsupported(detail, "name the modules in it, with at most two quantifiers")


def _is_quick(pattern: str) -> bool:
    # Somebody else wrote it: what backtracks without end must not reach a worker.
    repeated = pattern.count("*") + pattern.count("+")
    return len(pattern) <= _MAX_NAME and repeated <= _MAX_QUANTIFIERS and _SIMPLE.fullmatch(pattern) is not None


def base_of(folder: Path) -> str | None:
    """The model that an adapter says that it was trained on, with a revision if it names one."""
    settings = read_json(folder / ADAPTER_FILE, MAX_CONFIG_BYTES)
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(name, str) or not name:
        return None
    return f"{name}@{revision}" if isinstance(revision, str) and revision else name


def adapter_tensors(folder: Path, tensors: Mapping[str, TensorInfo]) -> AdapterTensors:
    """What an adapter's file holds, put beside the names of the model that it lies on.

    Raises:
        IncompatibleModelsError: the file is damaged, or changes what the model does not have.
    """
    stored = {_plain(name): info for name, info in read_header(folder / ADAPTER_WEIGHTS).tensors.items()}
    replaced = {name: info for name, info in stored.items() if name in tensors}
    sides: dict[str, tuple[Side, TensorInfo]] = {}
    for name in sorted(stored.keys() - replaced.keys()):
        part = _PART.match(name)
        if part is None or len(name) > _MAX_NAME:
            raise _misfit(f"the adapter changes {name[:200]}, which the model does not have")
        sides[name] = Side(part["module"], part["side"], bool(part["kind"])), stored[name]
    return AdapterTensors(replaced, sides)


def check_adapter(folder: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """An adapter fits the model with these tensors.

    Raises:
        InvalidInputError: it is of a kind that is not supported.
        IncompatibleModelsError: it changes what the model does not have, or in another shape.
    """
    settings, found = adapter_settings(folder), adapter_tensors(folder, tensors)
    for name, info in found.replaced.items():
        if info.shape != tensors[name].shape:
            raise _misfit(f"the adapter brings {name} of shape {info.shape}, the model's has {tensors[name].shape}")
    turned = {side.module for side, _ in found.sides.values() if side.on_embedding or settings.get("fan_in_fan_out")}
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for side, info in found.sides.values():
        # The change is B A; where the weight is stored the other way round it is its transpose.
        shape = info.shape[::-1] if side.module in turned else info.shape
        modules.setdefault(side.module, {})[side.side] = shape
    for module, pair in modules.items():
        _check_pair(module, pair, tensors, module in turned)


def _check_pair(
    module: str, pair: Mapping[str, tuple[int, ...]], tensors: Mapping[str, TensorInfo], turned: bool
) -> None:
    info = tensors.get(f"{module}.weight")
    if info is None or pair.keys() != {"A", "B"}:
        raise _misfit(f"the adapter changes {module[:200]}, which the model does not have, or only half of it")
    left, right = (pair["A"], pair["B"]) if turned else (pair["B"], pair["A"])
    if len(left) != 2 or len(right) != 2 or left[1] != right[0] or not left[1] or (left[0], right[1]) != info.shape:
        detail = f"the adapter's change of {module[:200]} is {left} times {right}, the weight has {info.shape}"
        raise _misfit(detail)


def _plain(name: str) -> str:
    plain = name.removeprefix(_PREFIX)
    for infix in (".base_layer", ".modules_to_save.default", ".modules_to_save"):
        plain = plain.replace(infix, "")
    return plain


def _misfit(detail: str) -> IncompatibleModelsError:
    return refusal("adapter", detail, "give the model that the adapter was trained on, as model+adapter")


def _unsupported(detail: str, fix: str) -> InvalidInputError:
    return InvalidInputError(f"{detail}; {fix}", [Problem("", "adapter", detail, fix)])
