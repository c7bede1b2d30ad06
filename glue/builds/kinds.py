"""What each kind of build reads: its config as checked values, and the models that it names. Knows no tensor."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from glue.merging.mergekit_yaml import MergekitFile, ModelReference
from glue.mixture.mix_yaml import MixFile
from glue.specs.build import BuildKind
from glue.stacking.stack_yaml import Stack, parse_stack, sources_of

Config = MergekitFile | MixFile | Stack


@dataclass(frozen=True)
class _Kind:
    """How a config of one kind is read, and what it stands on, in the order of the file."""

    parse: Callable[[Any], Config]
    references: Callable[[Any], Iterable[ModelReference]]


def _stacked(stack: Stack) -> Iterable[ModelReference]:
    return (reference for source in sources_of(stack) for reference in source.references())


_KINDS: dict[str, _Kind] = {
    "merge": _Kind(MergekitFile.parse, MergekitFile.references),
    "mixture": _Kind(MixFile.parse, MixFile.references),
    "stack": _Kind(parse_stack, _stacked),
}


def parse_config(kind: BuildKind, config: Any) -> Config:
    """The checked config of a build.

    Raises:
        InvalidInputError: something in it is wrong; with one problem for each mistake.
    """
    return _KINDS[kind].parse(config)


def references_of(kind: BuildKind, config: Config) -> tuple[ModelReference, ...]:
    """Every model that a config names, each once."""
    return tuple(dict.fromkeys(_KINDS[kind].references(config)))


def same_shapes(config: Config) -> tuple[ModelReference, ...]:
    """The models that have to be alike in every shape: the experts of a mixture that shares layers."""
    if not isinstance(config, MixFile) or (config.level == "model" and not config.dense_layers):
        return ()
    sources = config.sources() if config.trunk == "base" else config.sources()[1:]
    return tuple(dict.fromkeys(each.reference for each in sources if each.reference is not None))


def text_of(reference: ModelReference) -> str:
    """A reference as a file writes it: `model`, or `model+adapter`."""
    return reference.model if reference.lora is None else f"{reference.model}+{reference.lora}"


_MODEL_KEYS = frozenset({"model", "base_model", "source_model", "lora", "path"})
_TOKENIZER_KEYS = frozenset({"source", "tokenizer_source"})
_TOKENIZER_WORDS = frozenset({"union", "base"})


def with_models(value: Any, change: Callable[[str, str], str], pointer: str = "") -> Any:
    """A config's data with every model changed; `change` takes the place of each, a JSON pointer, and its text."""
    if isinstance(value, dict):
        return {key: _changed(key, inner, change, f"{pointer}/{key}") for key, inner in value.items()}
    if isinstance(value, list):
        return [with_models(inner, change, f"{pointer}/{number}") for number, inner in enumerate(value)]
    return value


def _changed(key: Any, value: Any, change: Callable[[str, str], str], pointer: str) -> Any:
    if isinstance(value, str):
        is_model = key in _MODEL_KEYS or (key in _TOKENIZER_KEYS and value not in _TOKENIZER_WORDS)
        return change(pointer, value) if is_model else value
    if key == "models" and isinstance(value, list):
        # A stack's models may be texts of their own.
        return [
            change(f"{pointer}/{number}", each)
            if isinstance(each, str)
            else with_models(each, change, f"{pointer}/{number}")
            for number, each in enumerate(value)
        ]
    return with_models(value, change, pointer)
