"""Surveys of whole models, taken for every operation of a recipe before its first tensor. Knows no method by name."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from glue.checkpoints.adapter import AdaptedCheckpoint
from glue.checkpoints.reader import Checkpoint
from glue.merging.blocks import Grid
from glue.merging.recipe import Recipe
from glue.merging.registry import Operands, Survey, Whole
from glue.merging.sources import operands_of
from glue.merging.tree import Leaf, Node, Operation
from glue.references.headers import read_header
from glue.references.reading import refusal

# A model's statistics of a kind are the safetensors `statistics/<kind>.safetensors` in its folder.
STATISTICS_FOLDER = "statistics"


def _silent(message: str) -> None:
    """Where nobody listens."""


def take_surveys(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint], told: Callable[[str], None] = _silent
) -> dict[str, Any]:
    """What every operation's survey finds, by the operation's key; those of nested merges are taken first.

    `told` hears what is being done.

    Raises:
        IncompatibleModelsError: an input lacks statistics that a method needs, or a survey cannot be taken.
    """
    check_surveys(recipe, checkpoints)
    found: dict[str, Any] = {}
    for key, survey, whole in _wholes(recipe, checkpoints, found, told):
        with torch.no_grad():
            found[key] = survey.take(whole)
    return found


def check_surveys(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Check that every survey can be taken, from headers and configs alone.

    Raises:
        InvalidInputError: a method cannot be used so.
        IncompatibleModelsError: an input lacks statistics that a method needs, or the method does not know its kind.
    """
    for _, survey, whole in _wholes(recipe, checkpoints, {}, _silent):
        for kind in survey.statistics:
            whole.statistics(kind)
        survey.check(whole)


def _wholes(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint], found: Mapping[str, Any], told: Callable[[str], None]
) -> Iterator[tuple[str, Survey[Any, Any, Any], Whole[Any, Any]]]:
    shapes = {target.name: target.shape for target in recipe.tensors if target.dtype.is_floating_point}
    for key, operations in _surveyed({name: recipe.plan(name) for name in shapes}).items():
        survey = next(iter(operations.values())).method.survey
        assert survey is not None
        yield key, survey, _whole(operations, shapes, recipe.config, checkpoints, found, told)


def _surveyed(trees: Mapping[str, Node]) -> dict[str, dict[str, Operation]]:
    """By key and tensor the operations whose method wants a survey, the inner ones of a tree before the outer."""
    wanted: dict[str, dict[str, Operation]] = {}
    for tensor, tree in trees.items():
        for operation in _operations(tree):
            survey = operation.method.survey
            if survey is not None and survey.wanted(operation.options):
                wanted.setdefault(operation.key, {})[tensor] = operation
    return wanted


def _operations(node: Node) -> Iterator[Operation]:
    if isinstance(node, Leaf):
        return
    for branch in (*node.inputs, *((node.base,) if node.base is not None else ())):
        yield from _operations(branch)
    yield node


def _whole(
    operations: Mapping[str, Operation],
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
    checkpoints: Mapping[str, Checkpoint],
    found: Mapping[str, Any],
    told: Callable[[str], None],
) -> Whole[Any, Any]:
    def operands(tensor: str) -> Operands[Any, Any]:
        return operands_of(operations[tensor], checkpoints, Grid(shapes[tensor]), tensor, found)

    first = next(iter(operations.values()))
    tensors = {tensor: shapes[tensor] for tensor in operations}
    each = {tensor: operation.each for tensor, operation in operations.items()}
    return Whole(tensors, each, config, operands, _opener(first, checkpoints), told)


def _opener(operation: Operation, checkpoints: Mapping[str, Checkpoint]) -> Callable[[str], tuple[Checkpoint, ...]]:
    return lambda kind: tuple(_statistics(node, kind, operation, checkpoints) for node in operation.inputs)


def _statistics(node: Node, kind: str, operation: Operation, checkpoints: Mapping[str, Checkpoint]) -> Checkpoint:
    """The statistics of one input, opened for reading."""
    needs = f"{operation.method.name} needs statistics of kind '{kind}' of its inputs"
    checkpoint = checkpoints[node.model] if isinstance(node, Leaf) else None
    if checkpoint is None or isinstance(checkpoint, AdaptedCheckpoint):
        what = "a merge" if checkpoint is None else "a model with an adapter"
        raise refusal("no_statistics", f"{needs}, and one of them is {what}", "save it as a folder of its own first")
    folder = checkpoint.folder
    file = folder / STATISTICS_FOLDER / f"{kind}.safetensors"
    if not file.is_file():
        fix = f"write them to {STATISTICS_FOLDER}/{kind}.safetensors in the model's folder"
        raise refusal("no_statistics", f"{needs}, and {folder.name} has none", fix)
    return Checkpoint(folder, checkpoint.config, dict(read_header(file).tensors))
