"""Inner products of the operands of a merge, found in one pass over their blocks. Knows no method.

The spherical methods and Model Stock never leave the span of their inputs, so the matrix of inner products is
all that they need of the whole tensor; what follows is algebra on a few numbers, and one weighted sum.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glue.merging.blocks import Block, Grid, Kernel, Source

Reader = Callable[[Block], Tensor]


def differences(sources: Sequence[Source], base: Source | None) -> list[Reader]:
    """Readers of each source minus the base, or of the sources themselves where there is no base."""
    if base is None:
        return [source.read for source in sources]

    def difference(source: Source) -> Reader:
        return lambda block: source.read(block).sub_(base.read(block))

    return [difference(source) for source in sources]


def gram(sources: Sequence[Source], base: Source | None, grid: Grid) -> Tensor:
    """The matrix of inner products of the sources (minus the base, where there is one), in fp64."""
    count = len(sources)
    products = torch.zeros(count, count, dtype=torch.float64)
    for block in grid.blocks:
        origin = None if base is None else base.read(block)
        vectors: list[Tensor] = []
        for place, source in enumerate(sources):
            vector = source.read(block)
            vectors.append((vector if origin is None else vector.sub_(origin)).flatten())
            # The product of a matrix of a few long rows with its own transpose is slower than its dot products.
            for other, earlier in enumerate(vectors):
                products[place, other] += float(torch.dot(vectors[place], earlier))
    return products + products.tril(-1).T


def stacked(sources: Sequence[Source], base: Source | None, block: Block) -> Tensor:
    """The block of every source (minus the base), `sources x rows x columns`, in fp32."""
    vectors = torch.stack([source.read(block) for source in sources])
    return vectors if base is None else vectors.sub_(base.read(block))


def weighted_sum(sources: Sequence[Source], weights: Sequence[float], base: Source | None, rest: float) -> Kernel:
    """The kernel of sum_i weights_i source_i + rest base; parts with weight zero are not read."""
    parts = [(source, weight) for source, weight in zip(sources, weights, strict=True) if weight != 0]
    if base is not None and rest != 0:
        parts.append((base, rest))

    def kernel(block: Block) -> Tensor:
        if not parts:
            return sources[0].read(block).zero_()
        (first, weight), *others = parts
        result = first.read(block)
        if weight != 1:
            result.mul_(weight)
        for source, other in others:
            result.add_(source.read(block), alpha=other)
        return result

    return kernel
