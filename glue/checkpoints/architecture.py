"""Which tensors a saved causal language model has, asked of transformers on a meta-device model. Reads no weights."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Self

import torch

from glue.checkpoints.known_architectures import keep, recalled
from glue.references.headers import TensorInfo
from glue.specs.errors import IncompatibleModelsError, Problem

if TYPE_CHECKING:
    # Imported where it is used: a merge of models that are known already starts without it.
    from transformers import PreTrainedConfig, PreTrainedModel

# Written by old versions of transformers, computed since then.
_LEGACY = (r"rotary_emb\.inv_freq$",)


@dataclass(frozen=True)
class Architecture:
    """What transformers' own save of a model with some config would write.

    `shapes` leaves out tied weights, whose names `tied` maps to the weights that they repeat. `leading` are the
    tensors that the model uses before its layers. A checkpoint of the inner model alone has names without `prefix`.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    leading: frozenset[str]
    ignorable: tuple[str, ...]
    prefix: str

    def canonical(self, name: str) -> str:
        """The full name of a stored tensor."""
        return name if name in self.shapes or name in self.tied else f"{self.prefix}.{name}"

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "tied": dict(self.tied),
            "leading": sorted(self.leading),
            "ignorable": list(self.ignorable),
            "prefix": self.prefix,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `as_json`."""
        shapes = {name: tuple(shape) for name, shape in value["shapes"].items()}
        leading, ignorable = frozenset(value["leading"]), tuple(value["ignorable"])
        return cls(shapes, value["tied"], leading, ignorable, value["prefix"])


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Build the config's model without memory and read off its tensors; once on every machine. Remote code never runs.

    Raises:
        IncompatibleModelsError: transformers knows no causal language model for this config.
    """
    return _architecture(json.dumps(config, sort_keys=True))


@lru_cache(maxsize=64)
def _architecture(config: str) -> Architecture:
    # A search asks for the same few configs at every candidate.
    with suppress(TypeError, KeyError, AttributeError):
        return Architecture.from_json(recalled(config))
    found = _ask_transformers(json.loads(config))
    keep(config, found.as_json())
    return found


def _ask_transformers(config: Mapping[str, Any]) -> Architecture:
    from transformers.core_model_loading import revert_weight_conversion

    model = meta_model(config)
    tied = dict(model.all_tied_weights_keys)
    ignored = set(model._keys_to_ignore_on_save or ())
    kept = {name: value for name, value in model.state_dict().items() if name not in tied and name not in ignored}
    stored = revert_weight_conversion(model, kept)
    patterns = (*_LEGACY, *sorted(model._keys_to_ignore_on_load_unexpected or ()))
    shapes = {name: tuple(value.shape) for name, value in stored.items()}
    return Architecture(shapes, tied, _leading(list(kept)), patterns, model.base_model_prefix)


def _leading(names: list[str]) -> frozenset[str]:
    # Modules stand in a model in the order of their use: what comes before the first layer is used before it.
    return frozenset(takewhile(lambda name: not re.search(r"\.\d+\.", name), names))


def meta_model(config: Mapping[str, Any]) -> "PreTrainedModel":
    """The config's causal language model on the meta device: names and shapes, no values.

    Raises:
        IncompatibleModelsError: transformers knows no causal language model for this config.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise _unknown(f"transformers knows no architecture {kind!r}")
    try:
        settings = CONFIG_MAPPING[kind].from_dict(dict(config))
        with torch.device("meta"):
            return _from_config(settings)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _unknown(f"transformers builds no causal language model from the config: {error}") from None


def _from_config(settings: "PreTrainedConfig") -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
    return model


def embedding_parameter(config: Mapping[str, Any]) -> str:
    """The full name of the input embedding's weight.

    Raises:
        IncompatibleModelsError: transformers knows no causal language model for this config.
    """
    model = meta_model(config)
    return _parameter(model, model.get_input_embeddings().weight)


def head_parameter(config: Mapping[str, Any]) -> str:
    """The full name of the head's weight; of a tied one that of the embedding.

    Raises:
        IncompatibleModelsError: transformers knows no causal language model for this config.
    """
    model = meta_model(config)
    return _parameter(model, model.get_output_embeddings().weight)


def _parameter(model: "PreTrainedModel", weight: Any) -> str:
    from transformers.core_model_loading import revert_weight_conversion

    name = next(name for name, parameter in model.named_parameters() if parameter is weight)
    # Checkpoints keep names that some architectures have given up in memory.
    stored: str = next(iter(revert_weight_conversion(model, {name: weight})))
    return stored


def stored_tensors(architecture: Architecture, tensors: Mapping[str, TensorInfo], model: str) -> dict[str, TensorInfo]:
    """Those of a checkpoint's tensors that belong into a save of the model, in the checkpoint's order.

    Left out are weights that the config ties to others and what old versions of transformers wrote in vain.

    Raises:
        IncompatibleModelsError: tensors are missing, unexpected or of the wrong shape; with one problem for each.
    """
    kept = {name: info for name, info in tensors.items() if not _superfluous(architecture, name)}
    problems = sorted(_mismatches(architecture, kept, model), key=lambda problem: problem.detail)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise IncompatibleModelsError(f"{problems[0].detail}{more}", problems)
    return kept


def _mismatches(architecture: Architecture, kept: Mapping[str, TensorInfo], model: str) -> Iterator[Problem]:
    shapes = architecture.shapes
    found = {architecture.canonical(name): info for name, info in kept.items()}
    for name in shapes.keys() - found:
        yield _problem(model, "missing_tensor", f"{name} is missing")
    for name, info in found.items():
        if name not in shapes:
            yield _problem(model, "unexpected_tensor", f"{name} is unknown to the architecture")
        elif info.shape != shapes[name]:
            yield _problem(model, "wrong_shape", f"{name} has shape {info.shape}, the config asks for {shapes[name]}")


def _superfluous(architecture: Architecture, name: str) -> bool:
    return architecture.canonical(name) in architecture.tied or (
        architecture.canonical(name) not in architecture.shapes
        and any(re.search(pattern, name) for pattern in architecture.ignorable)
    )


def _problem(model: str, code: str, detail: str) -> Problem:
    return Problem("", code, f"{model}: {detail}", "save the whole model again with save_pretrained()")


def _unknown(detail: str) -> IncompatibleModelsError:
    fix = "use a causal language model that transformers loads without remote code"
    return IncompatibleModelsError(f"{detail}; {fix}", [Problem("", "unknown_architecture", detail, fix)])
