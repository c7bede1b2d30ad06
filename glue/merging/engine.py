"""The streaming engine: expressions evaluated tensor by tensor, into memory, a resident model or a folder.

Computes in fp32 whatever is stored, in a fixed order, so that every way gives the same bits. Knows no method
by name.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glue.checkpoints.companions import copy_companions, saved_config, write_config
from glue.checkpoints.disk import write_whole
from glue.checkpoints.dtypes import config_dtype
from glue.checkpoints.manifest import MANIFEST_FILE, write_manifest
from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.resident import resident_tensors
from glue.checkpoints.shards import PlannedTensor, ShardFile, ShardPlan, plan_shards
from glue.checkpoints.verify import check_finite, verify_layout, verify_tokenizer
from glue.checkpoints.writer import Progress, write_shards
from glue.merging.blocks import Block, Grid
from glue.merging.data_flow import recipe_for
from glue.merging.parallel import Job, Piece, run_all
from glue.merging.progress import ByteProgress
from glue.merging.recipe import Recipe
from glue.merging.sources import source_of
from glue.merging.surveys import take_surveys
from glue.merging.tree import Node, leaves
from glue.specs.errors import IncompatibleModelsError
from glue.specs.expression import Member, Merge, members_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Consume = Callable[[int, Tensor], None]

BLOCKS_OF_A_PIECE = 2


def evaluate(expression: Member | Merge, checkpoints: Mapping[str, Checkpoint], tensor: str) -> Tensor:
    """One tensor of the merged model, in fp32; one that is not floating-point keeps its dtype.

    Raises:
        InvalidInputError: a method or a parameter is unknown or wrong.
        IncompatibleModelsError: the models do not fit together.
    """
    recipe = recipe_for(expression, checkpoints, torch.float32)
    found = take_surveys(recipe, checkpoints)
    target = next((each for each in recipe.tensors if each.name == tensor), None)
    if target is None:
        raise IncompatibleModelsError(f"the merged model has no tensor {tensor}")
    result = torch.empty(target.shape, dtype=target.dtype)
    _run([lambda: _pieces(recipe.plan(tensor), checkpoints, target, found, _into(result))])
    return result


def merge_into(expression: Member | Merge, checkpoints: Mapping[str, Checkpoint], model: "PreTrainedModel") -> None:
    """Overwrite a resident model's weights with the merged ones, block by block.

    With a model in fp32 the bits are those that `merge_to_folder` writes as float32.

    Raises:
        InvalidInputError: a method or a parameter is unknown or wrong.
        IncompatibleModelsError: the models do not fit together, or into the resident one.
    """
    recipe = recipe_for(expression, checkpoints, torch.float32)
    found = take_surveys(recipe, checkpoints)
    resident = resident_tensors(model)

    def job(target: PlannedTensor) -> Job:
        into = _into(_resident_tensor(resident, target))
        return lambda: _pieces(recipe.plan(target.name), checkpoints, target, found, into)

    _run([job(target) for target in recipe.tensors])


def merge_to_folder(
    expression: Member | Merge,
    folders: Mapping[str, Path],
    out: Path,
    *,
    dtype: str,
    shard_bytes: int,
    token: int,
    progress: Progress,
) -> None:
    """Write the merged model with config, tokenizer, generation settings and, last of all, its manifest.

    Memory holds a few blocks, whatever the models' size or number. A run that was killed goes on at the first
    missing shard and ends with the same bytes; a folder that is finished already is left as it is.

    Raises:
        InvalidInputError: a method or a parameter is unknown or wrong.
        IncompatibleModelsError: the models do not fit together, or the result would not be finite.
        DiskFullError: there is no space; nothing that looks finished is left.
    """
    with ExitStack() as stack:
        names = members_of(expression)
        checkpoints = {name: stack.enter_context(Checkpoint.open(folders[name])) for name in names}
        recipe = recipe_for(expression, checkpoints, config_dtype(dtype))
        write_recipe(recipe, checkpoints, out, dtype=dtype, shard_bytes=shard_bytes, token=token, progress=progress)


def write_recipe(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    out: Path,
    *,
    dtype: str,
    shard_bytes: int,
    token: int,
    progress: Progress,
) -> None:
    """Compute every tensor of a recipe into a verified folder; see `merge_to_folder`."""
    if (out / MANIFEST_FILE).is_file():
        return
    found = take_surveys(recipe, checkpoints, lambda message: progress(0.0, message))
    told = ByteProgress(sum(tensor.bytes for tensor in recipe.tensors), progress)

    def fill(shard: ShardFile) -> None:
        targets = shard.plan.tensors
        with closing(run_all([_job(recipe, checkpoints, target, found, shard) for target in targets])) as ends:
            for number in ends:
                told.add(targets[number].bytes)

    def kept(shard: ShardPlan) -> None:
        told.skip(sum(tensor.bytes for tensor in shard.tensors))

    digests = write_shards(out, plan_shards(recipe.tensors, shard_bytes), fill, kept, token)
    copy_companions(recipe.companions, out, token)
    if recipe.finish is not None:
        recipe.finish(out)
    config = saved_config(recipe.config, dtype)
    if recipe.modelling is not None:
        write_whole(out / recipe.modelling.file, recipe.modelling.source(), token)
        config["auto_map"] = recipe.modelling.auto_map()
    write_config(out, config, token)
    with Checkpoint.open(out) as written:
        verify_layout(written, recipe.tensors)
        verify_tokenizer(out, written.config)
    write_manifest(out, token, digests)


def _job(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    target: PlannedTensor,
    found: Mapping[str, Any],
    shard: ShardFile,
) -> Job:
    def store(element: int, block: Tensor) -> None:
        stored = block.to(target.dtype)
        check_finite(stored, target.name)
        shard.write(target.name, element, stored)

    return lambda: _pieces(recipe.plan(target.name), checkpoints, target, found, store)


def _run(jobs: list[Job]) -> None:
    for _ in run_all(jobs):
        pass


def _pieces(
    node: Node,
    checkpoints: Mapping[str, Checkpoint],
    target: PlannedTensor,
    found: Mapping[str, Any],
    consume: Consume,
) -> list[Piece]:
    """What gives the blocks of the tree's result to `consume`, piece by piece in order."""
    if not target.dtype.is_floating_point:
        return [lambda: consume(0, _common_value(node, checkpoints))]
    grid = Grid(target.shape)
    source = source_of(node, checkpoints, grid, target.name, found)

    def piece(blocks: Sequence[Block]) -> Piece:
        def run() -> None:
            for block in blocks:
                consume(block.start * grid.columns, source.read(block))

        return run

    starts = range(0, len(grid.blocks), BLOCKS_OF_A_PIECE)
    return [piece(grid.blocks[start : start + BLOCKS_OF_A_PIECE]) for start in starts]


def _common_value(node: Node, checkpoints: Mapping[str, Checkpoint]) -> Tensor:
    values = [(leaf, checkpoints[leaf.model].read(leaf.tensor)) for leaf in leaves(node)]
    first = values[0][1]
    for leaf, value in values[1:]:
        if value.dtype != first.dtype or not torch.equal(value, first):
            raise IncompatibleModelsError(f"{leaf.tensor} is not a weight, and {leaf.model}'s differs from the others'")
    return first


def _into(result: Tensor) -> Consume:
    flat = result.view(-1)

    def store(element: int, block: Tensor) -> None:
        flat[element : element + block.numel()] = block.flatten()

    return store


def _resident_tensor(resident: Mapping[str, Tensor], target: PlannedTensor) -> Tensor:
    tensor = resident.get(target.name)
    if tensor is None or tuple(tensor.shape) != target.shape:
        raise IncompatibleModelsError(f"the resident model has no tensor {target.name} of shape {target.shape}")
    return tensor
