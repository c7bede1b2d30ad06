"""What a merge will write, known from headers and configs before any weight is read. Knows no method by name."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glue.checkpoints.architecture import architecture_of, stored_tensors
from glue.checkpoints.dtypes import torch_dtype
from glue.checkpoints.modelling import Modelling
from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.shards import PlannedTensor
from glue.merging.layers import layer_name
from glue.merging.tree import Planner, planner
from glue.references.headers import TensorInfo
from glue.specs.errors import IncompatibleModelsError, Problem
from glue.specs.expression import Member, Merge, members_of

_FIX = "merge only models of one architecture and size"


@dataclass(frozen=True)
class Recipe:
    """The tensors of the result in the order in which they are stored, the tree of each, and the result's config.

    Tokenizer and generation settings are copied from the folder `companions`; `finish` writes into the result's
    folder what is not a copy. A result that no stock architecture fits brings the file of its `modelling`.
    """

    tensors: tuple[PlannedTensor, ...]
    plan: Planner
    config: Mapping[str, Any]
    companions: Path
    finish: Callable[[Path], None] | None = None
    modelling: Modelling | None = None


def recipe_of(expression: Member | Merge, checkpoints: Mapping[str, Checkpoint], dtype: torch.dtype) -> Recipe:
    """The recipe of an expression whose members all have the same tensors; the first one gives config and tokenizer.

    Floating-point tensors are stored in `dtype`, others as they are.

    Raises:
        InvalidInputError: a method or a parameter is unknown or wrong.
        IncompatibleModelsError: a member is incomplete, or the members do not fit together.
    """
    plan = planner(expression)
    names = members_of(expression)
    stored = {name: _stored(checkpoints[name], name) for name in names}
    problems = [problem for name in names[1:] for problem in _differences(names[0], name, stored)]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise IncompatibleModelsError(f"{problems[0].detail}{more}", problems)
    tensors = tuple(planned(info, dtype) for info in stored[names[0]].values())
    first = checkpoints[names[0]]
    return Recipe(tensors, plan, first.config, first.folder)


def planned(info: TensorInfo, dtype: torch.dtype) -> PlannedTensor:
    """A stored tensor as it will be written."""
    own = torch_dtype(info.dtype)
    return PlannedTensor(info.name, info.shape, dtype if own.is_floating_point else own)


def _stored(checkpoint: Checkpoint, name: str) -> dict[str, TensorInfo]:
    return stored_tensors(architecture_of(checkpoint.config), checkpoint.tensors, name)


def _differences(first: str, other: str, stored: Mapping[str, Mapping[str, TensorInfo]]) -> Iterator[Problem]:
    left, right = stored[first], stored[other]
    for name in sorted(left.keys() ^ right.keys()):
        owner, lacking = (first, other) if name in left else (other, first)
        yield Problem("", "tensor_missing", f"{owner} has a tensor {name}, {lacking} has not", _FIX)
    for name in sorted(left.keys() & right.keys()):
        if left[name].shape != right[name].shape:
            shapes = f"{left[name].shape} in {first} and {right[name].shape} in {other}"
            yield Problem("", "tensor_shape", f"{name} has shape {shapes}", _fix_shape(left[name], right[name]))


def _fix_shape(one: TensorInfo, another: TensorInfo) -> str:
    if layer_name(one.name) is None and len(one.shape) > 1 and one.shape[1:] == another.shape[1:]:
        return "bring the vocabularies together first: glue merge with tokenizer_source: union, or base"
    return _FIX
