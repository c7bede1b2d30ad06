"""The parameters that a sampled search moves: their ranges, and the expression that a point stands for."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import exp, log
from typing import Literal

from glue.specs.expression import ByLayer, Input, Member, Merge
from glue.specs.search import TASK_VECTOR_METHODS, Method
from glue.specs.zoo import BASE

Point = Mapping[str, float]

# Rounded before anybody sees them, so that the last bits of another BLAS kernel cannot make another candidate.
PARAMETER_DIGITS = 6
LOGIT_RANGE = 4.0
# Around a heuristic's result there is less to find far away.
HEURISTIC_LOGIT_RANGE = 1.0
SCALE_RANGE = (0.0, 2.0)
DENSITY_RANGE = (0.01, 1.0)

# Of these a common factor of all weights changes the model; the others normalise it away.
SCALED_METHODS = ("task_arithmetic", "dare_linear")
DENSITY_METHODS = ("ties", "dare_linear", "dare_ties")


@dataclass(frozen=True)
class Dimension:
    """One parameter and its range; a search starts in the middle."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class SearchSpace:
    """All merges of `members` by one method.

    With `simplex`, K members have K - 1 logits relative to the first: a common factor of normalised weights is no
    dimension. `groups` of `layers` above 1 have parameters of their own, and one more set serves what is in no
    layer. `centre` are the weights in the middle, equal ones if none are given.
    """

    members: tuple[str, ...]
    method: Method
    parametrisation: Literal["simplex", "box"] = "simplex"
    groups: int = 1
    layers: int = 1
    centre: tuple[float, ...] | None = None

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Every parameter, set by set."""
        return tuple(dimension for part in self._sets for dimension in self._set_dimensions(part))

    def middle(self) -> dict[str, float]:
        """The point in the middle of every range."""
        return {d.name: round((d.low + d.high) / 2, PARAMETER_DIGITS) for d in self.dimensions}

    def expression(self, point: Point) -> Merge:
        """The merge that a point stands for."""
        weights = [self._weights(point, part) for part in self._sets]
        densities = [self._densities(point, part) for part in self._sets]
        inputs = tuple(
            Input(model=Member(name=name), parameters=self._parameters(index, weights, densities))
            for index, name in enumerate(self.members)
        )
        based = self.method in TASK_VECTOR_METHODS
        return Merge(method=self.method, inputs=inputs, base=Member(name=BASE) if based else None)

    @property
    def _sets(self) -> tuple[str, ...]:
        if self.groups == 1:
            return ("",)
        return (*(f"group {index}: " for index in range(self.groups)), "outside: ")

    def _set_dimensions(self, part: str) -> list[Dimension]:
        if self.parametrisation == "box":
            found = [Dimension(f"{part}weight of {name}", 0.0, 1.0) for name in self.members]
        else:
            found = [self._logit(part, index) for index in range(1, len(self.members))]
            if self.method in SCALED_METHODS:
                found.append(Dimension(f"{part}scale", *SCALE_RANGE))
        if self.method in DENSITY_METHODS:
            found += [Dimension(f"{part}density of {name}", *DENSITY_RANGE) for name in self.members]
        return found

    def _logit(self, part: str, index: int) -> Dimension:
        name = f"{part}logit of {self.members[index]}"
        if self.centre is None:
            return Dimension(name, -LOGIT_RANGE, LOGIT_RANGE)
        middle = max(-LOGIT_RANGE, min(LOGIT_RANGE, log(self.centre[index] / self.centre[0])))
        return Dimension(name, middle - HEURISTIC_LOGIT_RANGE, middle + HEURISTIC_LOGIT_RANGE)

    def _weights(self, point: Point, part: str) -> list[float]:
        if self.parametrisation == "box":
            return [point[f"{part}weight of {name}"] for name in self.members]
        logits = [0.0, *(point[f"{part}logit of {name}"] for name in self.members[1:])]
        powers = [exp(logit - max(logits)) for logit in logits]
        scale = point.get(f"{part}scale", 1.0)
        return [round(scale * power / sum(powers), PARAMETER_DIGITS) for power in powers]

    def _densities(self, point: Point, part: str) -> list[float] | None:
        if self.method not in DENSITY_METHODS:
            return None
        return [point[f"{part}density of {name}"] for name in self.members]

    def _parameters(
        self, index: int, weights: list[list[float]], densities: list[list[float] | None]
    ) -> dict[str, float | ByLayer]:
        found: dict[str, float | ByLayer] = {"weight": self._by_layer([part[index] for part in weights])}
        named = [part[index] for part in densities if part is not None]
        return found | ({"density": self._by_layer(named)} if named else {})

    def _by_layer(self, values: list[float]) -> float | ByLayer:
        if self.groups == 1:
            return values[0]
        return ByLayer(layers=self.layers, groups=tuple(values[:-1]), outside=values[-1])
