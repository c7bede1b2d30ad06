"""Dense models as parts of a larger one: heads that stand alone, configs without what says nothing about a part."""

import inspect
from collections.abc import Mapping
from typing import Any

from glue.checkpoints.architecture import architecture_of, meta_model, stored_tensors
from glue.checkpoints.companions import saved_config
from glue.checkpoints.reader import Checkpoint
from glue.references.reading import refusal


def own_tensors(name: str, checkpoint: Checkpoint) -> dict[str, str]:
    """Full tensor name to stored name; tied weights are left out.

    Raises:
        IncompatibleModelsError: the model is incomplete, or of no stock architecture.
    """
    architecture = architecture_of(checkpoint.config)
    stored = stored_tensors(architecture, checkpoint.tensors, name)
    return {architecture.canonical(tensor): tensor for tensor in stored}


def untied_tensors(name: str, checkpoint: Checkpoint) -> dict[str, str]:
    """Full tensor name to stored name of a model that becomes part of a larger one.

    A tied head is named once more: loaded inside a larger model it would not be tied again.

    Raises:
        IncompatibleModelsError: the model is incomplete, cannot be untied or keeps no key-value cache.
    """
    _check_cache(name, checkpoint.config)
    sources = own_tensors(name, checkpoint)
    sources |= {head: sources[source] for head, source in architecture_of(checkpoint.config).tied.items()}
    untied = architecture_of(_untied(checkpoint.config))
    if untied.tied or untied.shapes.keys() != sources.keys():
        fix = "use an expert whose architecture allows tie_word_embeddings: false"
        raise refusal("tied_weights", f"{name} ties weights that cannot be stored apart", fix)
    return sources


def part_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A model's config as it stands inside a larger model's: untied, without what says nothing about the part."""
    # The larger model's own dtype is that of all parts, and the version that saved one says nothing of it.
    saved = saved_config(_untied(config), dtype)
    return {key: value for key, value in saved.items() if key not in {"dtype", "transformers_version"}}


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "tie_word_embeddings": False}


def _check_cache(model: str, config: Mapping[str, Any]) -> None:
    if "past_key_values" not in inspect.signature(meta_model(config).forward).parameters:
        fix = "use experts that take past_key_values"
        raise refusal("no_cache", f"{model} keeps no key-value cache, so it cannot generate in a mixture", fix)
