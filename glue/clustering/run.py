"""Folders compared and put into families, as `glue cluster` asks. Knows neither jobs nor the terminal."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from glue.checkpoints.adapter import open_checkpoint
from glue.checkpoints.reader import Checkpoint
from glue.clustering.linkage import families
from glue.clustering.similarity import Progress, compare
from glue.references.signature import differences, signature_parts
from glue.specs.errors import IncompatibleModelsError, InvalidInputError, Problem
from glue.specs.job import ClusteringSpec

DIGITS = 6


def cluster(models: Sequence[str], base: Path | None, clustering: ClusteringSpec, progress: Progress) -> dict[str, Any]:
    """Similarities of all pairs of model folders (`folder`, or `folder+adapter`) and the families, as plain data.

    Raises:
        InvalidInputError: a folder is missing or given twice, or there is no base for task vectors.
        IncompatibleModelsError: a model is incomplete, or two cannot be compared.
    """
    names = _names(models)
    if clustering.weights == "task_vector" and base is None:
        raise _invalid("/base", "task vectors are taken from a base", "add --base")
    with ExitStack() as stack:
        opened = [stack.enter_context(_opened(model)) for model in models]
        origin = stack.enter_context(Checkpoint.open(base)) if base and clustering.weights == "task_vector" else None
        _check_alike(names, opened)
        found = compare(opened, origin, progress)
    assert clustering.threshold is not None, "the spec has one"
    values = _rounded(found.overall)
    grouped = families(names, values, clustering.threshold, clustering.linkage)
    return {
        "models": names,
        **clustering.as_json(),
        "similarity": values,
        "families": [list(family) for family in grouped],
        "layers": {str(layer): _rounded(matrix) for layer, matrix in found.layers().items()},
        "matrices": {name: _rounded(matrix) for name, matrix in found.matrices.items()},
    }


def _opened(model: str) -> Checkpoint:
    folders = [Path(part) for part in model.split("+", 1)]
    for folder in folders:
        if not folder.is_dir():
            raise _invalid("/models", f"{folder} is not a folder", "give a model's folder, or folder+adapter")
    return open_checkpoint(folders)


def _names(models: Sequence[str]) -> list[str]:
    """The folders' own names, or their whole paths where two are called the same."""
    doubles = sorted({model for model in models if list(models).count(model) > 1})
    if doubles:
        raise _invalid("/models", f"{doubles[0]} is given twice", "give every model once")
    short = ["+".join(Path(part).resolve().name for part in model.split("+", 1)) for model in models]
    return short if len(set(short)) == len(short) else list(models)


def _check_alike(names: Sequence[str], opened: Sequence[Checkpoint]) -> None:
    parts = [signature_parts(each.config, each.tensors) for each in opened]
    problems = []
    for name, other in zip(names[1:], parts[1:], strict=True):
        found = list(differences(parts[0], other))
        if found:
            detail = f"{name} cannot be compared with {names[0]}: {'; '.join(found[:3])}"
            problems.append(Problem("/models", "other_signature", detail, "compare models of one architecture"))
    if problems:
        raise IncompatibleModelsError(problems[0].detail, problems)


def _rounded(matrix: Sequence[Sequence[float | None]]) -> list[list[Any]]:
    return [[None if value is None else round(value, DIGITS) for value in row] for row in matrix]


def _invalid(pointer: str, detail: str, fix: str) -> InvalidInputError:
    return InvalidInputError(f"{detail}; {fix}", [Problem(pointer, "cluster", detail, fix)])
