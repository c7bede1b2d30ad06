"""The weights of a linear sample router, from contexts on which an expert was the best. Knows no task, no score."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from glue.checkpoints.architecture import architecture_of, embedding_parameter, stored_tensors
from glue.checkpoints.reader import Checkpoint

# Features for prototypes are pooled by the functions that the finished models run.
from glue.mixture.modeling_glue_block_mixture import pool_states
from glue.mixture.modeling_glue_ffn_mixture import layers_of, mlp_name
from glue.mixture.modeling_glue_model_mixture import pool_features
from glue.mixture.sources import ExpertSource, opened_model

__all__ = [
    "InnerLayer",
    "RouterWeights",
    "embedding_of",
    "embedding_tensor",
    "layer_prototypes",
    "mlp_states",
    "pool_features",
    "pool_layer_states",
    "pool_mlp_states",
    "prototypes",
    "read_embedding",
    "stacked",
]

_SMALLEST_LENGTH = 1e-8


@dataclass(frozen=True)
class InnerLayer:
    """The first layer of a router of two: `weight` is inner x hidden, `bias` inner, both float32."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class RouterWeights:
    """A router: logits are weight (features - centre), or with an inner layer weight relu(inner (features - centre)).

    `weight` is experts x hidden (with an inner layer experts x inner), `centre` hidden, both float32. Routers of
    several layers have a dimension of decisions first.
    """

    weight: Tensor
    centre: Tensor
    inner: InnerLayer | None = None

    @property
    def inner_size(self) -> int:
        """The inner layer's width; 0 where there is none."""
        return 0 if self.inner is None else self.inner.bias.shape[-1]

    def has_shape(self, experts: int, hidden: int, decisions: tuple[int, ...] = ()) -> bool:
        """Whether every tensor has the shape that such a router needs."""
        shapes = [(self.weight, (experts, self.inner_size or hidden)), (self.centre, (hidden,))]
        if self.inner is not None:
            shapes += [(self.inner.weight, (self.inner_size, hidden)), (self.inner.bias, (self.inner_size,))]
        return all(tuple(tensor.shape) == (*decisions, *shape) for tensor, shape in shapes)

    def tensors(self, weight: str) -> dict[str, Tensor]:
        """The tensors by their names in a checkpoint, where the last layer is called `weight`."""
        named = {weight: self.weight, "centre": self.centre}
        if self.inner is not None:
            named |= {"inner.weight": self.inner.weight, "inner.bias": self.inner.bias}
        return named


def stacked(routers: Sequence[RouterWeights]) -> RouterWeights:
    """Routers of several layers as one, with a dimension of decisions first."""
    inner = [router.inner for router in routers if router.inner is not None]
    return RouterWeights(
        torch.stack([router.weight for router in routers]),
        torch.stack([router.centre for router in routers]),
        InnerLayer(torch.stack([one.weight for one in inner]), torch.stack([one.bias for one in inner]))
        if inner
        else None,
    )


def prototypes(features: Tensor, assignment: Sequence[int | None], experts: int) -> RouterWeights:
    """One row for each expert: the direction from the centre to the mean feature of the contexts assigned to it.

    `features` is contexts x hidden, as `pool_features` gives them; `assignment` names the best expert of each
    context. The centre is the mean over the experts' means, so that an expert with many contexts does not pull
    it; rows have unit length. After mergekit-moe's gate vectors, with contexts in place of prompts.

    Raises:
        ValueError: lengths differ, or an expert has no context.
    """
    if len(features) != len(assignment):
        raise ValueError(f"{len(features)} features for {len(assignment)} assignments")
    rows = [[index for index, expert in enumerate(assignment) if expert == each] for each in range(experts)]
    without = [expert for expert, indices in enumerate(rows) if not indices]
    if without:
        raise ValueError(f"experts {without} are the best on no context, so they have no prototype")
    means = torch.stack([features[indices].double().mean(0) for indices in rows])
    centre = means.mean(0)
    directions = means - centre
    lengths = directions.norm(dim=-1, keepdim=True).clamp(min=_SMALLEST_LENGTH)
    return RouterWeights((directions / lengths).float(), centre.float())


def layer_prototypes(states: Tensor, assignment: Sequence[int | None], experts: int) -> RouterWeights:
    """The same for routers in layers: `states` is contexts x layers x hidden; weights get a dimension of layers first.

    Raises:
        ValueError: lengths differ, or an expert has no context.
    """
    return stacked([prototypes(layer, assignment, experts) for layer in states.unbind(1)])


@torch.no_grad()
def pool_layer_states(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The mean state that enters each layer of a dense model: samples x layers x hidden, float32."""
    output = model(input_ids, attention_mask=attention_mask, output_hidden_states=True, use_cache=False)
    return torch.stack([pool_states(states, attention_mask) for states in output.hidden_states[:-1]], dim=1)


@torch.no_grad()
def mlp_states(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """What enters each layer's MLP in a dense model: samples x tokens x layers x hidden, float32.

    Raises:
        ValueError: the layers have no MLP that takes states alone.
    """
    _, layers = layers_of(model, model.config.num_hidden_layers)
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].float())

    hooks = [getattr(layer, mlp_name(layer)).register_forward_pre_hook(keep) for layer in layers]
    try:
        model(input_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found, dim=2)


def pool_mlp_states(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """The mean of what enters each layer's MLP: samples x layers x hidden, float32.

    Raises:
        ValueError: the layers have no MLP that takes states alone.
    """
    return torch.stack([pool_states(states) for states in mlp_states(model, input_ids).unbind(2)], dim=1)


def read_embedding(folder: Path) -> Tensor:
    """A model's input embedding: vocabulary x hidden, float32.

    Raises:
        IncompatibleModelsError: the folder is not a complete causal language model.
    """
    return embedding_of(folder)


def embedding_of(source: ExpertSource | Path) -> Tensor:
    """The same of a model that may be a merge or have an adapter.

    Raises:
        IncompatibleModelsError: it is not a complete causal language model.
    """
    with opened_model(source) as checkpoint:
        return checkpoint.read(embedding_tensor(checkpoint), torch.float32)


def embedding_tensor(checkpoint: Checkpoint) -> str:
    """The name under which a checkpoint stores its input embedding.

    Raises:
        IncompatibleModelsError: the folder is not a complete causal language model.
    """
    architecture = architecture_of(checkpoint.config)
    stored = stored_tensors(architecture, checkpoint.tensors, checkpoint.folder.name)
    wanted = embedding_parameter(checkpoint.config)
    wanted = architecture.tied.get(wanted, wanted)
    return next(name for name in stored if architecture.canonical(name) == wanted)
