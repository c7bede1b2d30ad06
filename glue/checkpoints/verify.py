"""Checking a written model before it is called finished, block by block. Knows no method."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from glue.checkpoints.companions import highest_token_id
from glue.checkpoints.dtypes import torch_dtype
from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.shards import PlannedTensor
from glue.checkpoints.writer import Progress
from glue.specs.errors import IncompatibleModelsError

BLOCK_ELEMENTS = 1 << 20


def verify_checkpoint(folder: Path, planned: Sequence[PlannedTensor], progress: Progress) -> None:
    """Check that the folder holds exactly the planned tensors, in shape and dtype, every value finite, and that
    its tokenizer fits the embedding. Planned tensors exclude tied ones, so a tied head stored beside is found.

    Raises:
        IncompatibleModelsError: something is not as it should be.
    """
    with Checkpoint.open(folder) as checkpoint:
        verify_layout(checkpoint, planned)
        verify_tokenizer(folder, checkpoint.config)
        total = sum(tensor.bytes for tensor in planned) or 1
        done = 0
        for tensor in planned:
            for block in checkpoint.blocks(tensor.name, BLOCK_ELEMENTS):
                check_finite(block, tensor.name)
            done += tensor.bytes
            progress(done / total, tensor.name)


def verify_layout(checkpoint: Checkpoint, planned: Sequence[PlannedTensor]) -> None:
    """Check names, shapes and dtypes by the headers alone.

    Raises:
        IncompatibleModelsError: the folder differs from the plan.
    """
    expected = {tensor.name: (tensor.shape, tensor.dtype) for tensor in planned}
    actual = {name: (info.shape, torch_dtype(info.dtype)) for name, info in checkpoint.tensors.items()}
    wrong = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
    if wrong:
        name = wrong[0]
        detail = f"{name} is {actual.get(name, 'missing')}, planned was {expected.get(name, 'nothing')}"
        raise IncompatibleModelsError(f"the written model is not as planned: {detail}")


def verify_tokenizer(folder: Path, config: dict[str, object]) -> None:
    """Check that every id of the tokenizer has a row in the embedding.

    Raises:
        IncompatibleModelsError: the vocabulary is too small.
    """
    highest, rows = highest_token_id(folder), config.get("vocab_size")
    if highest is not None and isinstance(rows, int) and highest >= rows:
        raise IncompatibleModelsError(
            f"the tokenizer gives ids up to {highest}, the embedding has {rows} rows; use the model's own tokenizer"
        )


def check_finite(block: Tensor, name: str) -> None:
    """Check that a block of floating-point values holds neither infinity nor NaN.

    Raises:
        IncompatibleModelsError: it does.
    """
    if not block.is_floating_point():
        return
    # A finite sum proves finite terms, at a third of the price; the sum itself may overflow.
    if not torch.isfinite(block.sum(dtype=torch.float32)) and not torch.isfinite(block).all():
        raise IncompatibleModelsError(f"{name} would hold infinities or NaN; an input does, or the dtype is too narrow")
