"""Which rows and columns of a model's weights may change places together without changing what it computes.

Knows the layout of Llama and of what is built like it (Mistral, Qwen2, Qwen3, Gemma, SmolLM): one order of the
residual stream from the embedding to the head; in every layer one order of the hidden units of the feed-forward part;
whole groups of heads that share a key, query heads inside a group, and the units of a group's values. The units of
queries and keys keep their places, since rotary positions tell them apart. Reads no tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glue.merging.layers import layer_name
from glue.references.reading import refusal
from glue.specs.errors import IncompatibleModelsError

RESIDUAL = "residual"
HIDDEN = "hidden"
QUERIES, KEYS, VALUES, OUTPUTS = "queries", "keys", "values", "outputs"
# The units of one head, which every head shares.
_HEAD = "head"

# A kind of axis of the whole model (no layer) or of one layer.
Axis = tuple[int | None, str]
Axes = tuple[Axis | None, ...]
# For every kind of axis, which of its places the one at each place comes from.
Orders = Mapping[Axis, Tensor]

_OUTSIDE: Mapping[str, tuple[str | None, ...]] = {
    "embed_tokens.weight": (None, RESIDUAL),
    "lm_head.weight": (None, RESIDUAL),
    "norm.weight": (RESIDUAL,),
}
_IN_A_LAYER: Mapping[str, tuple[str | None, ...]] = {
    "input_layernorm.weight": (RESIDUAL,),
    "post_attention_layernorm.weight": (RESIDUAL,),
    "pre_feedforward_layernorm.weight": (RESIDUAL,),
    "post_feedforward_layernorm.weight": (RESIDUAL,),
    "self_attn.q_proj.weight": (QUERIES, RESIDUAL),
    "self_attn.q_proj.bias": (QUERIES,),
    "self_attn.k_proj.weight": (KEYS, RESIDUAL),
    "self_attn.k_proj.bias": (KEYS,),
    "self_attn.v_proj.weight": (VALUES, RESIDUAL),
    "self_attn.v_proj.bias": (VALUES,),
    "self_attn.o_proj.weight": (RESIDUAL, OUTPUTS),
    "self_attn.o_proj.bias": (RESIDUAL,),
    "self_attn.q_norm.weight": (_HEAD,),
    "self_attn.k_norm.weight": (_HEAD,),
    "mlp.gate_proj.weight": (HIDDEN, RESIDUAL),
    "mlp.gate_proj.bias": (HIDDEN,),
    "mlp.up_proj.weight": (HIDDEN, RESIDUAL),
    "mlp.up_proj.bias": (HIDDEN,),
    "mlp.down_proj.weight": (RESIDUAL, HIDDEN),
    "mlp.down_proj.bias": (RESIDUAL,),
}


@dataclass(frozen=True)
class Heads:
    """How the rows of a layer's queries, keys and values are made up of heads."""

    groups: int
    queries: int
    size: int

    @property
    def lengths(self) -> dict[str, int]:
        """How many rows or columns each kind of axis has."""
        every = self.groups * self.queries * self.size
        return {QUERIES: every, OUTPUTS: every, KEYS: self.groups * self.size, VALUES: self.groups * self.size}


@dataclass(frozen=True)
class HeadOrder:
    """Where the heads of a layer come from: for every group the group, for every query head in it the one of that
    group, for every unit of its values the one of that group; `groups`, `groups x queries`, `groups x size`."""

    groups: Tensor
    queries: Tensor
    values: Tensor

    def axes(self) -> dict[str, Tensor]:
        """For each kind of axis, which of its places the one at each place comes from."""
        per_group, size = self.queries.shape[1], self.values.shape[1]
        units = torch.arange(size)
        heads = (self.groups.unsqueeze(1) * per_group + self.queries).unsqueeze(2) * size
        return {
            QUERIES: (heads + units).flatten(),
            KEYS: (self.groups.unsqueeze(1) * size + units).flatten(),
            VALUES: (self.groups.unsqueeze(1) * size + self.values).flatten(),
            OUTPUTS: (heads + self.values.unsqueeze(1)).flatten(),
        }


@dataclass(frozen=True)
class Symmetries:
    """What may be permuted in a model: the axes of every weight, and how many places each kind of axis has."""

    axes: Mapping[str, Axes]
    lengths: Mapping[Axis, int]
    heads: Heads

    @property
    def layers(self) -> tuple[int, ...]:
        """All layers, in order."""
        return tuple(sorted({layer for layer, _ in self.lengths if layer is not None}))

    def weights_of(self, layer: int | None, *kinds: str) -> tuple[str, ...]:
        """The weights with an axis of one of these kinds."""
        wanted = {(layer, kind) for kind in kinds}
        return tuple(name for name, axes in self.axes.items() if wanted.intersection(axes))


def symmetries_of(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Symmetries:
    """The symmetries of a model with these weights.

    Raises:
        IncompatibleModelsError: it is not built like Llama, so they are not known.
    """
    heads = _heads(config)
    axes = {name: _axes(name, shape) for name, shape in shapes.items()}
    lengths: dict[Axis, int] = {}
    for name, shape in shapes.items():
        for axis, length in zip(axes[name], shape, strict=True):
            if axis is None:
                continue
            expected = heads.size if axis[1] == _HEAD else heads.lengths.get(axis[1], lengths.setdefault(axis, length))
            if length != expected:
                raise _unknown(f"{name} has shape {shape}, and {expected} {axis[1]} units were expected")
            lengths[axis] = length
    fixed = {axis for axis in lengths if axis[1] == _HEAD}
    free = {name: tuple(None if axis in fixed else axis for axis in each) for name, each in axes.items()}
    return Symmetries(free, {axis: length for axis, length in lengths.items() if axis not in fixed}, heads)


def reordered(value: Tensor, axes: Axes, orders: Orders) -> Tensor:
    """A weight with its axes in these orders; kinds of axes without an order stay as they are."""
    for place, axis in enumerate(axes):
        if axis is not None and axis in orders:
            value = value.index_select(place, orders[axis])
    return value


def _heads(config: Mapping[str, Any]) -> Heads:
    every, width = config.get("num_attention_heads"), config.get("hidden_size")
    if not isinstance(every, int) or not isinstance(width, int):
        raise _unknown("the config names no attention heads")
    groups = config.get("num_key_value_heads") or every
    return Heads(groups, every // groups, config.get("head_dim") or width // every)


def _axes(name: str, shape: tuple[int, ...]) -> Axes:
    layer = layer_name(name)
    if layer is None:
        kinds, index = _OUTSIDE.get(name.removeprefix("model.")), None
    else:
        known = layer.stack in {"model.layers.", "layers."}
        kinds, index = _IN_A_LAYER.get(layer.rest.removeprefix(".")) if known else None, layer.index
    if kinds is None or len(kinds) != len(shape):
        raise _unknown(f"{name} of shape {shape} is no part of a model built like Llama")
    return tuple(None if kind is None else (None if kind == RESIDUAL else index, kind) for kind in kinds)


def _unknown(detail: str) -> IncompatibleModelsError:
    return refusal(
        "unknown_symmetry",
        f"what may be permuted in this architecture is not known: {detail}",
        "merge it by a method that does not permute, such as linear",
    )
