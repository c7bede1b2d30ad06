"""From a stack file's values and opened models to a recipe of the streaming engine. Reads no weights."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from glue.checkpoints.dtypes import config_dtype, dtype_name
from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.shards import PlannedTensor
from glue.checkpoints.vocabulary import load_tokenizer
from glue.merging.mergekit_tokenizer import chat_template, tokenizer_writer
from glue.merging.mergekit_yaml import MergekitFile, ModelReference
from glue.merging.model_source import ModelSource
from glue.merging.recipe import Recipe
from glue.specs.errors import InvalidInputError, Problem
from glue.stacking.layout import Place, layout
from glue.stacking.mixed import mixed_stack
from glue.stacking.modelling import STACK
from glue.stacking.models import StackModel, Vocabulary
from glue.stacking.stack_yaml import Concatenation, Interleaving, Stack, sources_of
from glue.stacking.stock import Trees, fits_one_config, stock_stack


def keys_of(stack: Stack) -> list[str]:
    """For each model of a stack a name that does not depend on where it lies; the same model has the same one."""
    sources = sources_of(stack)
    return [f"model{sources.index(source)}" for source in sources]


def stored_dtype(stack: Stack, first: Checkpoint) -> str:
    """The dtype in which the stack is stored: the file's, else that of the first model."""
    return str(stack.dtype or dtype_name(first.config))


def recipe_of_stack(stack: Stack, checkpoints: Mapping[str, Checkpoint]) -> tuple[Recipe, tuple[Place, ...]]:
    """The recipe of a stack, and its layers from bottom to top; `checkpoints` are its models by `keys_of`.

    Raises:
        InvalidInputError: a number does not fit the depth, or a tokenizer is not what the file says.
        IncompatibleModelsError: a model is incomplete, or the models cannot stand on each other.
    """
    models = _models(stack, checkpoints)
    places = layout(stack, [model.depth for model in models])
    vocabulary = Vocabulary(models, _as_merge_file(stack), _references(stack))
    dtype = stored_dtype(stack, models[0].checkpoint)
    ends = stack.ends if isinstance(stack, Concatenation | Interleaving) else None
    if fits_one_config(models):
        config, trees = stock_stack(models, places, vocabulary, ends or "mean")
        modelling = None
    elif ends == "mean":
        detail = "models of different architectures or settings have norms and heads of different kinds"
        fix = "set ends to outer, or leave it out"
        raise InvalidInputError(f"/ends: {detail}; {fix}", [Problem("/ends", "ends", detail, fix)])
    else:
        config, trees = mixed_stack(models, places, vocabulary, dtype)
        modelling = STACK
    finish = _finish(stack, models, vocabulary)
    nodes = {name: node for name, (node, _) in trees.items()}
    tensors = _planned(trees, dtype)
    return Recipe(tensors, nodes.__getitem__, config, models[0].checkpoint.folder, finish, modelling), places


def _models(stack: Stack, checkpoints: Mapping[str, Checkpoint]) -> list[StackModel]:
    known = {
        key: StackModel.of(key, _name(source), checkpoints[key])
        for key, source in zip(keys_of(stack), sources_of(stack), strict=True)
    }
    return [known[key] for key in keys_of(stack)]


def _name(source: ModelSource) -> str:
    return "the merge" if source.model is None else Path(source.model).name


def _references(stack: Stack) -> dict[ModelReference, str]:
    """A reference for each model, of merges a made-up one, so that the tokenizer's settings can name models."""
    named = zip(keys_of(stack), sources_of(stack), strict=True)
    return {source.reference or ModelReference(model=key): key for key, source in named}


def _as_merge_file(stack: Stack) -> MergekitFile:
    """The settings that stacks have in common with merges, in the form in which merges read them."""
    settings: dict[str, Any] = {}
    if isinstance(stack, Concatenation | Interleaving):
        settings = {"tokenizer": stack.tokenizer, "tokenizer_source": stack.tokenizer_source}
    models = [{"model": reference} for reference in _references(stack)]
    return MergekitFile.parse(
        {"merge_method": "linear", "models": models, "chat_template": stack.chat_template, **settings}
    )


def _finish(stack: Stack, models: Sequence[StackModel], vocabulary: Vocabulary) -> Callable[[Path], None] | None:
    template = chat_template(_as_merge_file(stack), [model.checkpoint.folder for model in models])
    if vocabulary.tokenizer is not None:
        return tokenizer_writer(vocabulary.tokenizer.tokenizer, template)
    if template is not None:
        return tokenizer_writer(load_tokenizer(models[0].checkpoint.folder), template)
    return None


def _planned(trees: Trees, dtype: str) -> tuple[PlannedTensor, ...]:
    return tuple(PlannedTensor(name, shape, config_dtype(dtype)) for name, (_, shape) in trees.items())
