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
    products = torch.zeros(len(sources), len(sources), dtype=torch.float64)
    for block in grid.blocks:
        vectors = stacked(sources, base, block).flatten(1)
        products += (vectors @ vectors.T).double()
    return products


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
