"""Weight matching: the order of one model's units in which its weights are most like another's. Knows no file.

Source: Git Re-Basin (arXiv 2209.04836), section 3.2 and algorithm 1: maximise <theta_A, pi(theta_B)> by coordinate
descent, one permutation at a time as a linear assignment, until nothing is gained. Here the descent starts from the
residual order that the weights outside the layers call for, since those alone do not depend on any other order; given
the residual order those of the layers do not depend on each other. No chance is involved.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from glue.merging.blocks import Grid, Source
from glue.merging.symmetries import (
    HIDDEN,
    KEYS,
    OUTPUTS,
    QUERIES,
    RESIDUAL,
    VALUES,
    Axis,
    HeadOrder,
    Orders,
    Symmetries,
    reordered,
)

MOST_SWEEPS = 100
# A smaller share of what an order is worth is rounding of fp32 sums, not a gain.
NO_GAIN = 1e-6


@dataclass(frozen=True)
class Pair:
    """Two models of one kind; `open` gives a weight of the first and of the second."""

    shapes: Mapping[str, tuple[int, ...]]
    symmetries: Symmetries
    open: Callable[[str], tuple[Source, Source]]

    def read(self, name: str, orders: Orders) -> tuple[Tensor, Tensor]:
        """The weight of either model, that of the second in these orders; fp32."""
        first, second = (whole(source, Grid(self.shapes[name])) for source in self.open(name))
        return first, reordered(second, self.symmetries.axes[name], orders)


@dataclass(frozen=True)
class Alignment:
    """Where the second model's residual units come from, and in every layer its hidden units and its heads."""

    residual: Tensor
    hidden: Mapping[int, Tensor]
    heads: Mapping[int, HeadOrder]

    def orders(self) -> dict[Axis, Tensor]:
        """The order of every kind of axis."""
        found: dict[Axis, Tensor] = {(None, RESIDUAL): self.residual}
        found |= {(layer, HIDDEN): order for layer, order in self.hidden.items()}
        for layer, order in self.heads.items():
            found |= {(layer, kind): places for kind, places in order.axes().items()}
        return found


def match(pair: Pair, told: Callable[[str], None] = lambda message: None) -> Alignment:
    """The order of the second model in which it is most like the first, as far as descent finds it.

    Never less like it than the model as it is.
    """
    start = unchanged(pair.symmetries)
    found = _last(descend(pair, outside_first(pair, start), told))
    if likeness(pair, found) >= likeness(pair, start):
        return found
    return _last(descend(pair, start, told))


def unchanged(symmetries: Symmetries) -> Alignment:
    """Everything where it is."""
    heads, layers = symmetries.heads, symmetries.layers
    order = HeadOrder(
        torch.arange(heads.groups),
        torch.arange(heads.queries).repeat(heads.groups, 1),
        torch.arange(heads.size).repeat(heads.groups, 1),
    )
    hidden = {layer: torch.arange(symmetries.lengths[layer, HIDDEN]) for layer in layers}
    return Alignment(torch.arange(symmetries.lengths[None, RESIDUAL]), hidden, dict.fromkeys(layers, order))


def outside_first(pair: Pair, start: Alignment) -> Alignment:
    """The start in the residual order that is best for those weights which depend on no other order."""
    axes = pair.symmetries.axes
    alone = [name for name, each in axes.items() if {axis for axis in each if axis} == {(None, RESIDUAL)}]
    return _residual(pair, start, alone) or start


def descend(pair: Pair, start: Alignment, told: Callable[[str], None] = lambda message: None) -> Iterator[Alignment]:
    """The start, and what every step that gains something makes of it."""
    yield start
    current = start
    for sweep in range(MOST_SWEEPS):
        for layer in pair.symmetries.layers:
            told(f"matching weights, sweep {sweep + 1}, layer {layer + 1} of {len(pair.symmetries.layers)}")
            for step in (_hidden, _heads):
                if (better := step(pair, current, layer)) is not None:
                    yield (current := better)
        told(f"matching weights, sweep {sweep + 1}, residual stream")
        every = pair.symmetries.weights_of(None, RESIDUAL)
        # The orders of the layers are the best for this residual order already.
        if (better := _residual(pair, current, every)) is None:
            return
        yield (current := better)


def likeness(pair: Pair, alignment: Alignment) -> float:
    """<theta_A, pi(theta_B)>, what is maximised."""
    orders, total = alignment.orders(), 0.0
    for name in pair.shapes:
        first, second = pair.read(name, orders)
        total += float(torch.dot(first.flatten(), second.flatten()))
    return total


def whole(source: Source, grid: Grid) -> Tensor:
    """All of a weight in its own shape, fp32."""
    return torch.cat([source.read(block) for block in grid.blocks]).view(grid.shape)


# --- one permutation at a time -----------------------------------------------------------------------------------


def _residual(pair: Pair, current: Alignment, names: tuple[str, ...] | list[str]) -> Alignment | None:
    found = _better(_products(pair, current, (None, RESIDUAL), names), current.residual)
    return None if found is None else replace(current, residual=found)


def _hidden(pair: Pair, current: Alignment, layer: int) -> Alignment | None:
    names = pair.symmetries.weights_of(layer, HIDDEN)
    found = _better(_products(pair, current, (layer, HIDDEN), names), current.hidden[layer])
    return None if found is None else replace(current, hidden={**current.hidden, layer: found})


def _products(pair: Pair, current: Alignment, axis: Axis, names: tuple[str, ...] | list[str]) -> Tensor:
    """The inner products of the first model's units along an axis with the second's, whose other axes are in order."""
    orders = {other: order for other, order in current.orders().items() if other != axis}
    length = pair.symmetries.lengths[axis]
    products = torch.zeros(length, length)
    for name in names:
        for first, second in _slices(pair, name, orders, pair.symmetries.axes[name].index(axis)):
            products.addmm_(first, second.T)
    return products


def _slices(pair: Pair, name: str, orders: Orders, place: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A weight of either model as `units x others`; those whose rows stay where they are come block by block."""
    if len(pair.shapes[name]) == 2 and pair.symmetries.axes[name][0] is None:
        first, second = pair.open(name)
        for block in Grid(pair.shapes[name]).blocks:
            yield first.read(block).T, second.read(block).T
        return
    mine, other = pair.read(name, orders)
    yield _units(mine, place), _units(other, place)


def _units(value: Tensor, place: int) -> Tensor:
    return value.movedim(place, 0).reshape(value.shape[place], -1)


def _better(products: Tensor, current: Tensor) -> Tensor | None:
    """The assignment of largest sum; None where it is not better than the current one."""
    found = _assigned(products)
    return found if _gains(_worth(products, found), _worth(products, current)) else None


def _gains(found: float, current: float) -> bool:
    return found - current > NO_GAIN * abs(current)


def _worth(products: Tensor, order: Tensor) -> float:
    return float(products.gather(1, order.unsqueeze(1)).sum(dtype=torch.float64))


def _assigned(products: Tensor) -> Tensor:
    _, columns = linear_sum_assignment(products.numpy(), maximize=True)
    return torch.from_numpy(columns)


def _last(alignments: Iterator[Alignment]) -> Alignment:
    return deque(alignments, maxlen=1).pop()


# --- heads -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Products:
    """Inner products of the heads of two layers, of every group with every group first.

    `queries` are those of query heads, `groups x groups x queries x queries`; `keys` of whole keys, `groups x
    groups`; `values` of the units of values, `groups x groups x size x size`; `outputs` of the columns behind them,
    `groups x groups x queries x size x queries x size`.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class _Match:
    """How a group is matched with another: its query heads, the units of its values, and what that is worth."""

    worth: float
    queries: Tensor
    values: Tensor


def _heads(pair: Pair, current: Alignment, layer: int) -> Alignment | None:
    products, order = _head_products(pair, current, layer), current.heads[layer]
    count = len(order.groups)
    now = [
        _worth_of(products, group, int(other), order.queries[group], order.values[group])
        for group, other in enumerate(order.groups)
    ]
    matches = [[_matched(products, group, other) for other in range(count)] for group in range(count)]
    for group, other in enumerate(order.groups.tolist()):
        kept = _climbed(products, group, other, order.queries[group], order.values[group])
        if kept.worth >= matches[group][other].worth:
            matches[group][other] = kept
    groups = _assigned(torch.tensor([[each.worth for each in row] for row in matches], dtype=torch.float64))
    chosen = [matches[group][int(other)] for group, other in enumerate(groups)]
    if not _gains(sum(each.worth for each in chosen), sum(now)):
        return None
    found = HeadOrder(
        groups, torch.stack([each.queries for each in chosen]), torch.stack([each.values for each in chosen])
    )
    return replace(current, heads={**current.heads, layer: found})


def _head_products(pair: Pair, current: Alignment, layer: int) -> _Products:
    heads = pair.symmetries.heads
    groups, queries, size = heads.groups, heads.queries, heads.size
    orders: Orders = {(None, RESIDUAL): current.residual}
    found = {
        QUERIES: torch.zeros(groups * queries, groups * queries),
        KEYS: torch.zeros(groups, groups),
        VALUES: torch.zeros(groups * size, groups * size),
        OUTPUTS: torch.zeros(groups * queries * size, groups * queries * size),
    }
    for kind, products in found.items():
        for name in pair.symmetries.weights_of(layer, kind):
            place = pair.symmetries.axes[name].index((layer, kind))
            first, second = (_units(value, place).reshape(len(products), -1) for value in pair.read(name, orders))
            products.addmm_(first, second.T)
    return _Products(
        found[QUERIES].view(groups, queries, groups, queries).transpose(1, 2),
        found[KEYS],
        found[VALUES].view(groups, size, groups, size).transpose(1, 2),
        found[OUTPUTS].view(groups, queries, size, groups, queries, size).permute(0, 3, 1, 2, 4, 5),
    )


def _matched(products: _Products, group: int, other: int) -> _Match:
    """A group with another: query heads by their own rows first, then as `_climbed` does."""
    queries = _assigned(products.queries[group, other])
    values = _assigned(_for_values(products, group, other, queries))
    return _climbed(products, group, other, queries, values)


def _climbed(products: _Products, group: int, other: int, queries: Tensor, values: Tensor) -> _Match:
    """The orders of query heads and of values, each in turn the best for the other, until nothing is gained."""
    worth = _worth_of(products, group, other, queries, values)
    for _ in range(MOST_SWEEPS):
        better_queries = _assigned(_for_queries(products, group, other, values))
        better_values = _assigned(_for_values(products, group, other, better_queries))
        better = _worth_of(products, group, other, better_queries, better_values)
        if not _gains(better, worth):
            break
        worth, queries, values = better, better_queries, better_values
    return _Match(worth, queries, values)


def _for_queries(products: _Products, group: int, other: int, values: Tensor) -> Tensor:
    """What each query head is worth in each place, `queries x queries`, with the values in this order."""
    columns = products.outputs[group, other][:, torch.arange(len(values)), :, values]
    return products.queries[group, other] + columns.sum(0)


def _for_values(products: _Products, group: int, other: int, queries: Tensor) -> Tensor:
    """What each unit of the values is worth in each place, `size x size`, with the query heads in this order."""
    columns = products.outputs[group, other][torch.arange(len(queries)), :, queries, :]
    return products.values[group, other] + columns.sum(0)


def _worth_of(products: _Products, group: int, other: int, queries: Tensor, values: Tensor) -> float:
    own = _worth(products.queries[group, other], queries) + float(products.keys[group, other])
    return own + _worth(_for_values(products, group, other, queries), values)
