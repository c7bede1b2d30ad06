"""Stacks of models of different architectures, by our modelling file. Reads no weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from glue.checkpoints.parts import part_config, untied_tensors
from glue.merging.layers import count_key, layer_name
from glue.references.reading import refusal
from glue.stacking.layout import Place
from glue.stacking.modeling_glue_stack import GlueStackConfig, GlueStackForCausalLM, headless
from glue.stacking.models import StackModel, Vocabulary
from glue.stacking.stock import Trees, by_layer

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_PROBED_ROWS = 8


@dataclass(frozen=True)
class _Part:
    """Consecutive layers of one model."""

    model: StackModel
    first: int
    places: tuple[Place, ...]


def mixed_stack(
    models: Sequence[StackModel], places: Sequence[Place], vocabulary: Vocabulary, dtype: str
) -> tuple[dict[str, Any], Trees]:
    """The config of the stack, and for each of its tensors the tree and the shape, in the order of a save.

    Raises:
        IncompatibleModelsError: the widths differ, or an architecture cannot stand in a stack.
    """
    widths = {model.name: model.settings.get("hidden_size") for model in models}
    if len(set(widths.values())) > 1:
        detail = f"the models have different widths: {', '.join(f'{name} {width}' for name, width in widths.items())}"
        raise refusal("width", detail, "stack models of one hidden_size")
    parts = _parts(models, places)
    rows = vocabulary.rows(models[0])
    config = _config(parts, rows, dtype, models[0])
    for part in parts:
        untied_tensors(part.model.name, part.model.checkpoint)
    for part, settings in zip(parts[1:], (config.parts or [])[1:], strict=True):
        _check_passes_on(part.model.name, settings)
    return _plain(config), _trees(config, parts, vocabulary)


def _parts(models: Sequence[StackModel], places: Sequence[Place]) -> list[_Part]:
    parts: list[_Part] = []
    for place in places:
        last = parts[-1].places[-1] if parts else None
        if last is not None and (place.model, place.layer) == (last.model, last.layer + 1):
            parts[-1] = _Part(parts[-1].model, parts[-1].first, (*parts[-1].places, place))
        else:
            parts.append(_Part(models[place.model], place.layer, (place,)))
    return parts


def _config(parts: Sequence[_Part], rows: int, dtype: str, first: StackModel) -> GlueStackConfig:
    ids: dict[str, Any] = {name: first.settings.get(name) for name in _TOKEN_IDS}
    return GlueStackConfig(
        parts=[_part_settings(part, rows, dtype) for part in parts],
        vocab_size=rows,
        hidden_size=first.settings["hidden_size"],
        num_hidden_layers=sum(len(part.places) for part in parts),
        dtype=dtype,
        **ids,
    )


def _part_settings(part: _Part, rows: int, dtype: str) -> dict[str, Any]:
    own = part_config(part.model.checkpoint.config, dtype)
    lists = by_layer([part.model], [Place(0, place.layer) for place in part.places])
    # Token ids of a part mean nothing, and one past the vocabulary would be refused.
    ids = dict.fromkeys(_TOKEN_IDS)
    return {**own, **lists, str(count_key(own)): len(part.places), "vocab_size": rows, **ids}


def _plain(config: GlueStackConfig) -> dict[str, Any]:
    settings: dict[str, Any] = config.to_dict()
    settings.pop("transformers_version", None)
    return settings | {"architectures": [GlueStackForCausalLM.__name__]}


def _trees(config: GlueStackConfig, parts: Sequence[_Part], vocabulary: Vocabulary) -> Trees:
    trees: Trees = {}
    for name, shape in _expected(config, parts[0].model.name).items():
        source, tensor = _origin(name, parts)
        leaf, found = vocabulary.leaf(source, tensor)
        if found != shape:
            detail = f"{tensor} of {source.name} has shape {found}, the stack needs {shape}"
            raise refusal("stack_shape", detail, "stack models whose layers are all alike")
        trees[name] = (leaf, shape)
    return trees


def _origin(name: str, parts: Sequence[_Part]) -> tuple[StackModel, str]:
    """The model and its tensor for a name such as parts.1.layers.0.mlp.up_proj.weight."""
    _, number, rest = name.split(".", 2)
    part = parts[int(number)]
    # The last part is a whole model, the others are inner ones.
    full = rest if part is parts[-1] else f"{part.model.architecture.prefix}.{rest}"
    found = layer_name(full)
    return part.model, found.at(part.first + found.index) if found else full


def _expected(config: GlueStackConfig, model: str) -> Mapping[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            stack = GlueStackForCausalLM(config)
    except (ValueError, TypeError, AttributeError) as error:
        raise _cannot(model, str(error)) from None
    stored = revert_weight_conversion(stack, stack.state_dict())
    return {name: tuple(value.shape) for name, value in stored.items()}


def _check_passes_on(model: str, settings: Mapping[str, Any]) -> None:
    """Check that without layers the inner model gives what it is given: no scale, no position is added to it."""
    own = {key: value for key, value in settings.items() if not isinstance(value, list)}
    own |= {str(count_key(own)): 0, "vocab_size": _PROBED_ROWS}
    try:
        probe = _probe(own)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            given = torch.randn(1, 3, int(own["hidden_size"]))
            answer = probe(inputs_embeds=given)[0]
    except (ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise _cannot(model, str(error)) from None
    if not torch.equal(answer, given):
        raise _cannot(model, "it changes what enters its first layer")


def _probe(settings: dict[str, Any]) -> PreTrainedModel:
    return headless(AutoConfig.for_model(**settings), {"dtype": torch.float32})


def _cannot(model: str, reason: str) -> Exception:
    fix = "put it at the bottom, or use models of one architecture"
    return refusal("stack_part", f"the layers of {model} cannot stand on those of another: {reason}", fix)
