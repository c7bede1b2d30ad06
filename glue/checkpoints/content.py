"""The digest of a model by content: equal for the same model wherever it lies and however it is sharded."""

import hashlib
from pathlib import Path

import torch

from glue.checkpoints.manifest import file_sha256
from glue.checkpoints.reader import Checkpoint
from glue.references.adapters import ADAPTER_WEIGHTS
from glue.references.folders import ADAPTER_FILE, TOKENIZER_FILES
from glue.specs.digests import digest_of

_BLOCK_ELEMENTS = 1 << 20


def content_digest(folder: Path) -> str:
    """sha256 over the model's config, its tokenizer's files, and every tensor's name, dtype, shape and bytes.

    Raises:
        IncompatibleModelsError: the folder is not a complete safetensors model.
    """
    with Checkpoint.open(folder) as checkpoint:
        tensors = {name: _tensor_digest(checkpoint, name) for name in sorted(checkpoint.tensors)}
        files = {name: file_sha256(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
        return digest_of({"config": checkpoint.config, "files": files, "tensors": tensors})


def adapter_digest(folder: Path) -> str:
    """sha256 over an adapter's settings and weights.

    Raises:
        IncompatibleModelsError: a file cannot be read.
    """
    return digest_of([file_sha256(folder / name) for name in (ADAPTER_FILE, ADAPTER_WEIGHTS)])


def _tensor_digest(checkpoint: Checkpoint, name: str) -> list[object]:
    info = checkpoint.info(name)
    digest = hashlib.sha256()
    for block in checkpoint.blocks(name, _BLOCK_ELEMENTS):
        digest.update(block.view(torch.uint8).numpy().data)
    return [info.dtype, list(info.shape), digest.hexdigest()]
