"""Stacks of models that one stock config fits: the same architecture, deeper. Reads no weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from glue.checkpoints.architecture import architecture_of
from glue.merging.layers import count_key, is_by_layer, layer_name
from glue.merging.tree import Leaf, Node
from glue.references.reading import refusal
from glue.stacking.layout import Place
from glue.stacking.models import StackModel, Vocabulary, mean_of, silenced
from glue.stacking.silence import output_projections
from glue.stacking.stack_yaml import Ends

Shape = tuple[int, ...]
Trees = dict[str, tuple[Node, Shape]]

# What may differ between models whose layers work under one config.
_FREE = {
    "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "vocab_size", "use_cache",
    "max_position_embeddings", "max_window_layers", "tie_word_embeddings", "initializer_range", "pretraining_tp",
}  # fmt: skip


def fits_one_config(models: Sequence[StackModel]) -> bool:
    """Whether layers of all the models compute the same under the first one's config."""
    first, *others = (_deciding(model) for model in models)
    return all(other == first for other in others)


def stock_stack(
    models: Sequence[StackModel], places: Sequence[Place], vocabulary: Vocabulary, ends: Ends
) -> tuple[dict[str, Any], Trees]:
    """The config of the stack, and for each of its tensors the tree and the shape, in the order of a save.

    Raises:
        IncompatibleModelsError: the architecture has no place for the layers in this order.
    """
    outer = ends == "outer" and models[0].key != models[-1].key
    tied = all(model.is_tied for model in models) and not outer
    config = _config(models, places, vocabulary.rows(models[0]), tied)
    shapes = architecture_of(config).shapes
    leading = architecture_of(config).leading
    trees: Trees = {}
    for name, expected in shapes.items():
        found = layer_name(name)
        if found is not None:
            place = places[found.index]
            tree = _in_layer(models[place.model], found.at(place.layer), place.silent, vocabulary)
        elif outer:
            leaf, shape = vocabulary.leaf(models[0] if name in leading else models[-1], name)
            tree = (leaf, shape)
        else:
            tree = _mean(models, name, vocabulary)
        trees[name] = tree
        if tree[1] != expected:
            detail = f"{name} has shape {tree[1]}, a stack of {len(places)} layers needs {expected}"
            raise refusal("stack_shape", detail, "stack models whose layers are all alike")
    return config, trees


def by_layer(models: Sequence[StackModel], places: Sequence[Place]) -> dict[str, Any]:
    """The entries of a config that list something for each layer, as the places need them."""
    lists = {}
    for key, value in models[0].settings.items():
        if is_by_layer(key, value, models[0].depth):
            lists[key] = [models[place.model].settings[key][place.layer] for place in places]
    return lists


def _config(models: Sequence[StackModel], places: Sequence[Place], rows: int, tied: bool) -> dict[str, Any]:
    config = dict(models[0].checkpoint.config)
    config |= by_layer(models, places)
    config |= {str(count_key(config)): len(places), "vocab_size": rows, "tie_word_embeddings": tied}
    positions = [model.settings.get("max_position_embeddings") for model in models]
    if "max_position_embeddings" in config and all(isinstance(each, int) for each in positions):
        config["max_position_embeddings"] = min(each for each in positions if each is not None)
    return config


def _in_layer(model: StackModel, tensor: str, silent: bool, vocabulary: Vocabulary) -> tuple[Node, Shape]:
    leaf, shape = vocabulary.leaf(model, tensor)
    found = layer_name(tensor)
    if silent and found is not None and tensor in output_projections(model.layer(found.index)):
        return silenced(leaf), shape
    return leaf, shape


def _mean(models: Sequence[StackModel], tensor: str, vocabulary: Vocabulary) -> tuple[Node, Shape]:
    leaves: list[Leaf] = []
    shapes: set[Shape] = set()
    for model in models:
        leaf, shape = vocabulary.leaf(model, tensor)
        leaves.append(leaf)
        shapes.add(shape)
    if len(shapes) > 1:
        raise refusal("stack_shape", f"{tensor} has different shapes: {sorted(shapes)}", "set ends to outer")
    return mean_of(leaves), shapes.pop()


def _deciding(model: StackModel) -> Mapping[str, Any]:
    count = model.depth
    ours = _FREE | {str(count_key(model.settings))}
    return {
        key: value
        for key, value in model.settings.items()
        if key not in ours and not key.endswith("_token_id") and not is_by_layer(key, value, count)
    }
