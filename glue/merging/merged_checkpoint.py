"""A merge read as if it were a checkpoint, so that other builders take it as an input. Nothing is stored."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import Tensor

from glue.checkpoints.adapter import open_checkpoint
from glue.checkpoints.companions import copy_companions, saved_config, write_config
from glue.checkpoints.dtypes import safetensors_name
from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.shards import PlannedTensor
from glue.merging.blocks import Grid, Source
from glue.merging.mergekit_plan import names_of, recipe_of_file, stored_dtype
from glue.merging.mergekit_yaml import MergekitFile, ModelReference
from glue.merging.model_source import ModelSource
from glue.merging.recipe import Recipe
from glue.merging.sources import source_of
from glue.merging.surveys import take_surveys
from glue.references.headers import TensorInfo
from glue.specs.errors import IncompatibleModelsError

# The folder or folders of a reference: the model's, and its adapter's where it has one.
Locate = Callable[[ModelReference], tuple[Path, ...]]

# How many tensors' operations are kept prepared: some look over whole tensors first.
_PREPARED = 16
_COMPANIONS = "merge"


class MergedCheckpoint(Checkpoint):
    """The result of a merge file, computed in fp32 whenever it is read; `folder` holds its config and tokenizer."""

    def __init__(
        self, folder: Path, recipe: Recipe, checkpoints: Mapping[str, Checkpoint], resources: ExitStack
    ) -> None:
        infos = {planned.name: _info(planned, folder) for planned in recipe.tensors}
        super().__init__(folder, dict(recipe.config), infos)
        self._recipe, self._checkpoints, self._resources = recipe, checkpoints, resources
        self._prepared: OrderedDict[str, Source] = OrderedDict()
        self._found: dict[str, Any] | None = None
        self._preparing = threading.Lock()

    @classmethod
    def open_merged(cls, file: MergekitFile, locate: Locate) -> Self:
        """Open the models of a merge file as the model that they would be merged into.

        Raises:
            InvalidInputError: a method, a parameter or a folder is wrong.
            IncompatibleModelsError: the models do not fit together.
        """
        with ExitStack() as stack:
            names = names_of(file)
            opened = {names[each]: stack.enter_context(open_checkpoint(locate(each))) for each in names}
            recipe = recipe_of_file(file, opened)
            home = Path(stack.enter_context(TemporaryDirectory(prefix="glue-")))
            folder = _write_companions(recipe, home / _COMPANIONS, stored_dtype(file, opened))
            return cls(folder, recipe, opened, stack.pop_all())

    def read_flat(self, name: str, start: int, stop: int) -> Tensor:
        """The elements from `start` to before `stop` of the flattened merged tensor."""
        info = self.info(name)
        if not info.dtype.startswith(("F", "BF")):
            raise IncompatibleModelsError(f"{name} is not a weight, and a nested merge has only weights")
        grid = Grid(info.shape)
        source = self._source(name, grid)
        columns = grid.columns
        kept = [each for each in grid.blocks if each.start * columns < stop and each.stop * columns > start]
        values = torch.cat([source.read(block).flatten() for block in kept])
        first = kept[0].start * columns
        return values[start - first : stop - first]

    def close(self) -> None:
        """Close the models and forget the companions."""
        super().close()
        self._resources.close()

    def _source(self, name: str, grid: Grid) -> Source:
        with self._preparing:
            if self._found is None:
                self._found = take_surveys(self._recipe, self._checkpoints)
            if name not in self._prepared:
                with torch.no_grad():
                    plan = self._recipe.plan(name)
                    self._prepared[name] = source_of(plan, self._checkpoints, grid, name, self._found)
                if len(self._prepared) > _PREPARED:
                    self._prepared.popitem(last=False)
            return self._prepared[name]


def open_source(source: ModelSource, locate: Locate) -> Checkpoint:
    """A model as a file names it, opened for reading.

    Raises:
        InvalidInputError: a folder is missing, or something in a nested merge is wrong.
        IncompatibleModelsError: a model is incomplete, or the models of a merge do not fit together.
    """
    if source.merge is not None:
        return MergedCheckpoint.open_merged(source.merge, locate)
    assert source.reference is not None, "a source that is no merge names a folder"
    return open_checkpoint(locate(source.reference))


def _write_companions(recipe: Recipe, folder: Path, dtype: str) -> Path:
    folder.mkdir()
    copy_companions(recipe.companions, folder, 0)
    if recipe.finish is not None:
        recipe.finish(folder)
    write_config(folder, saved_config(recipe.config, dtype), 0)
    return folder


def _info(planned: PlannedTensor, folder: Path) -> TensorInfo:
    dtype = torch.float32 if planned.dtype.is_floating_point else planned.dtype
    size = planned.bytes // planned.dtype.itemsize * dtype.itemsize
    return TensorInfo(planned.name, safetensors_name(dtype), planned.shape, folder, 0, size)
