"""Mixtures inside a stock model's layers, stored under `trunk.`: which tensor comes from where. Knows no level.

What is inside the routed part of a layer is there once for each expert; everything else comes from a base, or is the
experts' mean.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from glue.checkpoints.architecture import meta_model
from glue.checkpoints.dtypes import config_dtype, torch_dtype
from glue.checkpoints.shards import PlannedTensor
from glue.mixture.dense import DenseModel, Shape, mean_tensor
from glue.mixture.modeling_glue_block_mixture import layers_of
from glue.mixture.router import RouterWeights
from glue.mixture.sources import ExpertSource, Streamed
from glue.references.reading import refusal

Produce = dict[str, tuple[PlannedTensor, Callable[[], Tensor | Streamed]]]


def opened(stack: ExitStack, source: ExpertSource) -> DenseModel:
    """A model as part of a mixture inside layers; it stays open as long as the stack."""
    checkpoint = stack.enter_context(source.opened())
    return DenseModel(source.name, checkpoint, untied=True, adjustment=source.adjustment)


def layer_list(model: DenseModel) -> str:
    """The full name of a model's list of decoder layers."""
    return layers_of(meta_model(model.checkpoint.config), model.config.num_hidden_layers)[0]


def check_numbers(experts: int, top_k: int, dense_layers: int, most_dense: int, asks: str) -> None:
    """Check what people have chosen; `asks` is what is routed, and at most `most_dense` layers can be dense.

    Raises:
        ValueError: a number is out of range.
    """
    if not 1 <= top_k <= experts:
        raise ValueError(f"each {asks} can ask 1 to {experts} experts, not {top_k}")
    if not 0 <= dense_layers <= most_dense:
        raise ValueError(f"0 to {most_dense} layers can be dense, not {dense_layers}")


def expert_tensors(
    inside: re.Pattern[str], dense_layers: int, experts: Sequence[DenseModel], trunk: Sequence[DenseModel], dtype: str
) -> Produce:
    """All of the trunk's tensors; those that `inside` matches, in layers with experts, once for each expert.

    `inside` has groups for the layer and for the rest of the name.
    """
    produce: Produce = {}
    for name, info in trunk[0].tensors.items():
        own = torch_dtype(info.dtype)
        stored = config_dtype(dtype) if own.is_floating_point else own
        found = inside.fullmatch(name)
        if found is None or int(found["layer"]) < dense_layers:
            for model in trunk:
                model.check_shape(name, info.shape)
            target = PlannedTensor(f"trunk.{name}", info.shape, stored)
            produce[target.name] = (target, partial(mean_tensor, name, trunk))
            continue
        for index, expert in enumerate(experts):
            expert.check_shape(name, info.shape)
            place = name.removesuffix(found["rest"]) + f"experts.{index}.{found['rest']}"
            target = PlannedTensor(f"trunk.{place}", info.shape, stored)
            produce[target.name] = (target, partial(expert.read_adjusted, name))
    return produce


def router_tensors(places: Mapping[str, int], router: RouterWeights) -> Produce:
    """The tensors of a router of several decisions: `places` says where each stands and which decision it takes."""
    produce: Produce = {}
    for place, decision in places.items():
        for part, values in router.tensors("gate.weight").items():
            target = PlannedTensor(f"trunk.{place}.{part}", tuple(values.shape[1:]), torch.float32)
            produce[target.name] = (target, partial(Tensor.float, values[decision]))
    return produce


def check_router(router: RouterWeights, decisions: int, experts: int, hidden: int) -> None:
    """Check that a router has a decision for each place.

    Raises:
        ValueError: it has another shape.
    """
    if not router.has_shape(experts, hidden, (decisions,)):
        expected: Shape = (decisions, experts, router.inner_size or hidden)
        raise ValueError(f"a router of shape {expected} is needed, this is {tuple(router.weight.shape)}")


def check_names(kind: type[PreTrainedModel], config: PreTrainedConfig, produce: Produce, model: str) -> None:
    """Check that the finished model has exactly these tensors.

    Raises:
        IncompatibleModelsError: it has others, so the architecture cannot be split in this way.
    """
    fix = "use level model, or experts that transformers stores as it runs them"
    try:
        with torch.device("meta"):
            model_on_meta = kind(config)
    except ValueError as error:
        raise refusal("layers", f"{model}: {error}", fix) from None
    stored = revert_weight_conversion(model_on_meta, model_on_meta.state_dict())
    expected = {name: tuple(value.shape) for name, value in stored.items()}
    if expected != {name: planned.shape for name, (planned, _) in produce.items()}:
        raise refusal("layers", f"the layers of {model} cannot stand side by side", fix)
