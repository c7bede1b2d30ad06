"""Tensors of a finished checkpoint get other values, and not one other byte changes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.replace import replace_tensors
from glue.checkpoints.shards import PlannedTensor
from glue.checkpoints.writer import write_checkpoint
from glue.specs.errors import IncompatibleModelsError

SHAPES = {
    "a": ((4, 8), torch.float32),
    "b": ((3,), torch.int64),
    "c": ((8, 8), torch.bfloat16),
    "d": ((16,), torch.float32),
}


def silent(fraction: float, text: str) -> None:
    """A progress callback that keeps quiet."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    planned = [PlannedTensor(name, shape, dtype) for name, (shape, dtype) in SHAPES.items()]
    write_checkpoint(tmp_path, planned, old, shard_bytes=160, token=1, progress=silent)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def old(name: str) -> Tensor:
    shape, dtype = SHAPES[name]
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)


def test_only_the_shards_that_hold_them_are_written_anew(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    replace_tensors(folder, {"c": torch.full((8, 8), 0.1)}, 1, silent)
    changed = [name for name, content in before.items() if (folder / name).read_bytes() != content]
    assert len(changed) == 1
    assert {path.name for path in folder.iterdir()} == before.keys()
    with Checkpoint.open(folder) as checkpoint:
        assert torch.equal(checkpoint.read("c"), torch.full((8, 8), 0.1, dtype=torch.bfloat16))
        for name in "abd":
            assert torch.equal(checkpoint.read(name), old(name))


def test_the_old_values_give_the_old_bytes(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    replace_tensors(folder, {"a": torch.zeros(4, 8), "d": torch.zeros(16)}, 1, silent)
    replace_tensors(folder, {"a": old("a"), "d": old("d")}, 1, silent)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_is_not_there_or_does_not_fit_is_refused(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(IncompatibleModelsError, match="no tensor e"):
        replace_tensors(folder, {"e": torch.zeros(1)}, 1, silent)
    with pytest.raises(ValueError, match="shape"):
        replace_tensors(folder, {"a": torch.zeros(8, 4)}, 1, silent)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
