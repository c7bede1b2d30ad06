"""The data-flow space: layers of several models in any order, each perhaps scaled, as one deeper or flatter model.

Source: Akiba et al. 2024, "Evolutionary Optimization of Model Merging Recipes" (arXiv 2403.13187), section 3.2. There a
layer's input is scaled. A norm in front of every sublayer does not see a factor of the residual stream, so up to the
norm's epsilon that is the same model as one whose layers' outputs carry the inverse of the factors before them; and
those are weights, which any server can load.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from glue.checkpoints.architecture import architecture_of, stored_tensors
from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.shards import PlannedTensor
from glue.merging.layers import layer_count, layer_name, with_layers
from glue.merging.methods import method_of
from glue.merging.recipe import Recipe, planned, recipe_of
from glue.merging.tree import Leaf, Node, Operation
from glue.references.headers import TensorInfo
from glue.specs.errors import IncompatibleModelsError, InvalidInputError
from glue.specs.expression import Member, Merge, is_data_flow, members_of
from glue.specs.projections import is_output


class Slot(NamedTuple):
    """One layer of the result: which model's, which one, and the factor of what it adds to the residual stream."""

    model: str
    layer: int
    scale: float


def recipe_for(expression: Member | Merge, checkpoints: Mapping[str, Checkpoint], dtype: torch.dtype) -> Recipe:
    """The recipe of any expression; see `recipe_of`, whose errors it shares."""
    if isinstance(expression, Merge) and is_data_flow(expression):
        return _recipe(expression, checkpoints, dtype)
    return recipe_of(expression, checkpoints, dtype)


def config_for(expression: Merge, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """The config of a data-flow expression's result: that of the model of its ends, with another number of layers.

    Raises:
        IncompatibleModelsError: the config does not say how many layers there are, or a layer does not exist.
    """
    config = checkpoints[_ends(expression)].config
    layers = [slot.layer for slot in _slots(expression)]
    if max(layers) >= layer_count(config):
        raise IncompatibleModelsError(f"there is no layer {max(layers)} in models of {layer_count(config)} layers")
    return with_layers(config, layers)


def _recipe(expression: Merge, checkpoints: Mapping[str, Checkpoint], dtype: torch.dtype) -> Recipe:
    stored = {
        name: stored_tensors(architecture_of(checkpoints[name].config), checkpoints[name].tensors, name)
        for name in members_of(expression)
    }
    ends = _ends(expression)
    config = config_for(expression, checkpoints)
    nodes: dict[str, Node] = {}
    tensors: list[PlannedTensor] = []
    for name, info in stored[ends].items():
        if layer_name(name) is None:
            nodes[name] = Leaf(ends, name)
            tensors.append(planned(info, dtype))
    for index, slot in enumerate(_slots(expression)):
        for name, info in _layer(stored[slot.model], slot.layer):
            found = layer_name(name)
            assert found is not None
            nodes[found.at(index)] = _scaled(Leaf(slot.model, name), slot.scale)
            tensors.append(replace(planned(info, dtype), name=found.at(index)))
    first = checkpoints[ends]
    return Recipe(tuple(tensors), nodes.__getitem__, config, first.folder)


def _layer(stored: Mapping[str, TensorInfo], layer: int) -> Iterator[tuple[str, TensorInfo]]:
    for name, info in stored.items():
        found = layer_name(name)
        if found is not None and found.index == layer:
            yield name, info


def _scaled(leaf: Leaf, scale: float) -> Node:
    if scale == 1 or not is_output(leaf.tensor):
        return leaf
    method = method_of("passthrough")
    each = (method.per_input.parse({"scale": scale}),)
    return Operation(method, (leaf,), None, method.options.parse({}), each, key=leaf.model)


def _ends(expression: Merge) -> str:
    if not isinstance(expression.base, Member):
        raise InvalidInputError("data_flow needs a base: the member whose embeddings, norm and head it takes")
    return expression.base.name


def _slots(expression: Merge) -> list[Slot]:
    return [_slot(part.model, part.parameters) for part in expression.inputs]


def _slot(model: Member | Merge, parameters: Mapping[str, Any]) -> Slot:
    if not isinstance(model, Member) or "layer" not in parameters:
        raise InvalidInputError("every input of data_flow is a member with the number of one of its layers")
    return Slot(model.name, int(parameters["layer"]), float(parameters.get("scale", 1.0)))
