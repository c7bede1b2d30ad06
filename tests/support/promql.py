"""The part of PromQL that our dashboard speaks, over scrapes of our own processes: Prometheus's grammar, its parser.

A series is what a scrape of one process holds: name, labels, and first and last value of the scrapes.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import promql_parser
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]

_AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {"sum": sum, "max": max, "min": min, "avg": mean}
_MATCHES: dict[str, Callable[[str, str], bool]] = {
    "Equal": lambda have, want: have == want,
    "NotEqual": lambda have, want: have != want,
    "Re": lambda have, want: re.fullmatch(want, have) is not None,
    "NotRe": lambda have, want: re.fullmatch(want, have) is None,
}


@dataclass
class Series:
    """First and last value of one series, and the seconds between them."""

    name: str
    labels: Labels
    first: float
    last: float
    seconds: float


class Scrapes:
    """What several scrapes of several processes held."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, Labels], tuple[float, float, float, float]] = {}

    def add(self, process: str, text: str, at: float) -> None:
        """One scrape at a time in seconds; the process becomes the label `pod`."""
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = (sample.name, frozenset({**sample.labels, "pod": process}.items()))
                # A counter that was not there yet counted nothing yet.
                first, began = self._series.get(key, (0.0, at, 0, 0))[:2]
                self._series[key] = (first, began, sample.value, at)

    @property
    def names(self) -> set[str]:
        """The names of all series."""
        return {name for name, _ in self._series}

    def query(self, expression: str) -> Vector:
        """What the expression gives now; every range is the time from the first scrape to the last."""
        return self._value(promql_parser.parse(expression))

    def _value(self, node: Any) -> Vector:
        match type(node).__name__:
            case "ParenExpr":
                return self._value(node.expr)
            case "VectorSelector":
                return {each.labels: each.last for each in self._select(node)}
            case "AggregateExpr":
                return _aggregate(str(node.op), node.modifier, self._value(node.expr))
            case "BinaryExpr":
                return _divide(node, self._value(node.lhs), self._value(node.rhs))
            case "Call":
                return self._call(node)
        raise NotImplementedError(type(node).__name__)

    def _call(self, node: Any) -> Vector:
        if node.func.name == "rate":
            found = self._select(node.args[0].vector_selector)
            return {each.labels: (each.last - each.first) / each.seconds for each in found if each.seconds > 0}
        if node.func.name == "histogram_quantile":
            return _quantiles(node.args[0].val, self._value(node.args[1]))
        raise NotImplementedError(node.func.name)

    def _select(self, node: Any) -> Iterator[Series]:
        for (name, labels), (first, began, last, ended) in self._series.items():
            if name == node.name and _matches(node.matchers.matchers, dict(labels)):
                yield Series(name, labels, first, last, ended - began)


def metric_names(expression: str) -> set[str]:
    """The metrics that an expression asks for."""
    return set(re.findall(r"\bglue_\w+", promql_parser.parse(expression).prettify()))


def _matches(matchers: Iterable[Any], labels: Mapping[str, str]) -> bool:
    return all(_MATCHES[str(each.op).rpartition(".")[2]](labels.get(each.name, ""), each.value) for each in matchers)


def _aggregate(operation: str, modifier: Any, vector: Vector) -> Vector:
    kept = set(modifier.labels) if modifier else set()
    groups: dict[Labels, list[float]] = {}
    for labels, value in vector.items():
        groups.setdefault(frozenset(pair for pair in labels if pair[0] in kept), []).append(value)
    return {labels: _AGGREGATES[operation](values) for labels, values in groups.items()}


def _divide(node: Any, left: Vector, right: Vector) -> Vector:
    assert str(node.op) == "/"
    matching = node.modifier.matching if node.modifier else None
    ignored = set(matching.labels) if matching else set()
    divided = {}
    for labels, value in left.items():
        other = right.get(frozenset(pair for pair in labels if pair[0] not in ignored))
        if other:
            divided[labels] = value / other
    return divided


def _quantiles(quantile: float, buckets: Vector) -> Vector:
    groups: dict[Labels, list[tuple[float, float]]] = {}
    for labels, value in buckets.items():
        bound = float(dict(labels)["le"])
        groups.setdefault(frozenset(pair for pair in labels if pair[0] != "le"), []).append((bound, value))
    found = {labels: _quantile(quantile, sorted(bounds)) for labels, bounds in groups.items()}
    return {labels: value for labels, value in found.items() if not math.isnan(value)}


def _quantile(quantile: float, buckets: Sequence[tuple[float, float]]) -> float:
    total = buckets[-1][1]
    if not total:
        return math.nan
    below, count = 0.0, 0.0
    for bound, cumulated in buckets:
        if cumulated >= quantile * total:
            if math.isinf(bound):
                return below
            return below + (bound - below) * (quantile * total - count) / max(cumulated - count, 1e-12)
        below, count = bound, cumulated
    return below
