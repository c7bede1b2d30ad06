"""How alike checkpoints of one signature are: column cosines of their attention and MLP matrices.

Streams every matrix once and holds one block of each checkpoint; knows neither families nor thresholds.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from glue.checkpoints.reader import Checkpoint
from glue.references.headers import TensorInfo
from glue.specs.errors import IncompatibleModelsError

Progress = Callable[[float, str], None]

# Half a megabyte in fp32: the blocks of a pair stay in the processor's cache.
_BLOCK_ELEMENTS = 1 << 17
_LAYER = re.compile(r"\.(\d+)\.")
_INSIDE = re.compile(r"attn|attention|mlp|ffn|feed_forward|moe")


@dataclass(frozen=True)
class Similarity:
    """Similarities of all pairs, symmetric, 1 on the diagonal.

    `overall` is the plain mean over the matrices. `matrices` holds the same by tensor name; an entry is none
    where two models have nothing to compare: every column of both is zero.
    """

    overall: list[list[float]]
    matrices: dict[str, list[list[float | None]]]

    def layers(self) -> dict[int, list[list[float]]]:
        """The mean over the matrices of each layer."""
        numbers = {name: _layer_of(name) for name in self.matrices}
        return {
            layer: _mean([self.matrices[name] for name in numbers if numbers[name] == layer])
            for layer in sorted(set(numbers.values()))
        }


def compare(checkpoints: Sequence[Checkpoint], base: Checkpoint | None, progress: Progress) -> Similarity:
    """All pairs of checkpoints of equal signatures, in one pass over each; with `base`, of their task vectors.

    For each two-dimensional attention or MLP weight inside the layers: the cosine of equal columns (dim 0), its
    mean over the columns; then the plain mean over those matrices. Sums over blocks are in double precision. A
    column that is zero in one model has cosine 0; one that is zero in both says nothing and is left out.
    Source: Model-GLUE (arXiv 2410.05357), appendix A.5, and the authors' `clustering.py`.

    Raises:
        IncompatibleModelsError: there is no such matrix, or the checkpoints differ in one's shape.
    """
    names = _matrix_names(checkpoints[0])
    everybody = [*checkpoints, *([base] if base else [])]
    _check_shapes(names, everybody)
    total = sum(_bytes(checkpoints[0].tensors[name]) for name in names)
    matrices: dict[str, list[list[float | None]]] = {}
    done = 0
    for name, products in _all_column_products(names, checkpoints, base):
        matrices[name] = _column_cosines(products)
        done += _bytes(checkpoints[0].tensors[name])
        progress(done / total, name)
    return Similarity(_mean(list(matrices.values())), matrices)


def compare_merge(
    checkpoints: Sequence[Checkpoint], weights: Sequence[float], base: Checkpoint | None, progress: Progress
) -> list[float]:
    """How alike each checkpoint is to the linear merge of all with these weights, as `compare` would say.

    The merge is never built: products with it are weighted sums of products of its inputs, column by column.
    With `base`, weights that sum to 1 give the merge's task vector.

    Raises:
        IncompatibleModelsError: as `compare`.
    """
    names = _matrix_names(checkpoints[0])
    _check_shapes(names, [*checkpoints, *([base] if base else [])])
    matrices: list[list[list[float | None]]] = []
    for number, (name, products) in enumerate(_all_column_products(names, checkpoints, base)):
        matrices.append(_column_cosines(_with_merge(products, torch.tensor(weights, dtype=torch.float64))))
        progress((number + 1) / len(names), name)
    return _mean(matrices)[-1][:-1]


def _with_merge(products: Tensor, weights: Tensor) -> Tensor:
    """The products with one more model, the weighted sum of the others: (n + 1) x (n + 1) x columns."""
    crossed = torch.einsum("i,ijc->jc", weights, products)
    square = torch.einsum("j,jc->c", weights, crossed)
    upper = torch.cat([products, crossed.unsqueeze(1)], dim=1)
    return torch.cat([upper, torch.cat([crossed, square.unsqueeze(0)]).unsqueeze(0)])


def _matrix_names(checkpoint: Checkpoint) -> list[str]:
    names = sorted(name for name, info in checkpoint.tensors.items() if _counts(name, info.shape))
    if not names:
        raise IncompatibleModelsError(f"{checkpoint.folder.name} has no attention or MLP matrix inside its layers")
    return names


def _counts(name: str, shape: tuple[int, ...]) -> bool:
    layer = _LAYER.search(name)
    return len(shape) == 2 and 0 not in shape and layer is not None and bool(_INSIDE.search(name, layer.end()))


def _layer_of(name: str) -> int:
    layer = _LAYER.search(name)
    assert layer is not None, "only names inside a layer are compared"
    return int(layer[1])


def _check_shapes(names: Sequence[str], checkpoints: Sequence[Checkpoint]) -> None:
    first = checkpoints[0]
    for checkpoint in checkpoints[1:]:
        for name in names:
            found = checkpoint.tensors.get(name)
            if found is None or found.shape != first.tensors[name].shape:
                detail = f"{name} is {'missing' if found is None else found.shape} in {checkpoint.folder.name}"
                raise IncompatibleModelsError(f"{detail} and {first.tensors[name].shape} in {first.folder.name}")


def _bytes(info: TensorInfo) -> int:
    return info.end - info.start


def _all_column_products(
    names: Sequence[str], checkpoints: Sequence[Checkpoint], base: Checkpoint | None
) -> Iterator[tuple[str, Tensor]]:
    """The products of every matrix in turn, one thread per core, each with torch single-threaded."""
    threads, workers = torch.get_num_threads(), len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(workers, "similarity", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from zip(names, pool.map(lambda name: _column_products(name, checkpoints, base), names), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _column_products(name: str, checkpoints: Sequence[Checkpoint], base: Checkpoint | None) -> Tensor:
    """Dot products of equal columns of all pairs: models x models x columns, float64.

    Products are summed in fp32 over the few rows of a block, and over the blocks in double precision.
    """
    count, columns = len(checkpoints), checkpoints[0].tensors[name].shape[1]
    products = torch.zeros(count, count, columns, dtype=torch.float64)
    for blocks in _blocks(name, checkpoints, base):
        scratch = torch.empty_like(blocks[0])
        for left, right in combinations_with_replacement(range(count), 2):
            products[left, right] += torch.mul(blocks[left], blocks[right], out=scratch).sum(0)
    for left, right in combinations_with_replacement(range(count), 2):
        products[right, left] = products[left, right]
    return products


def _blocks(name: str, checkpoints: Sequence[Checkpoint], base: Checkpoint | None) -> Iterator[list[Tensor]]:
    columns = checkpoints[0].tensors[name].shape[1]
    elements = max(1, _BLOCK_ELEMENTS // columns) * columns
    everybody = [*checkpoints, *([base] if base else [])]
    for flat in zip(*(checkpoint.blocks(name, elements) for checkpoint in everybody), strict=True):
        blocks = [block.to(torch.float32).view(-1, columns) for block in flat]
        yield [block - blocks[-1] for block in blocks[:-1]] if base else blocks


def _column_cosines(products: Tensor) -> list[list[float | None]]:
    squares = products.diagonal().T
    lengths = (squares.unsqueeze(1) * squares.unsqueeze(0)).sqrt()
    cosines = torch.where(lengths > 0, products / lengths, 0.0).clamp(-1, 1)
    telling = (squares.unsqueeze(1) > 0) | (squares.unsqueeze(0) > 0)
    counts = telling.sum(-1)
    means = (cosines.sum(-1) / counts).tolist()
    return [
        [mean if count else None for mean, count in zip(*row, strict=True)]
        for row in zip(means, counts.tolist(), strict=True)
    ]


def _mean(matrices: Sequence[list[list[float | None]]]) -> list[list[float]]:
    size = len(matrices[0])
    return [[_mean_of([matrix[i][j] for matrix in matrices]) for j in range(size)] for i in range(size)]


def _mean_of(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    # Two models that differ from the base nowhere are the same model.
    return sum(known) / len(known) if known else 1.0
