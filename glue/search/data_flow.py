"""The data-flow space as parameters: an indicator and a factor for every place on the path. Pure."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from glue.search.space import PARAMETER_DIGITS, Dimension, Point
from glue.specs.expression import DATA_FLOW, Input, Member, Merge

# A place is taken where its indicator is above 0. The start takes the first model's own layers and no others.
TAKEN, LEFT = (-0.5, 1.5), (-1.5, 0.5)
FACTOR_RANGE = (0.5, 1.5)


@dataclass(frozen=True)
class DataFlowSpace:
    """All paths through `repeats` passes over the layers of all `members`, the best member first.

    Source: arXiv 2403.13187, section 3.2. The paper's factors W_ij depend on the two layers that follow each other;
    here each place has one factor for its input, which says the same of any one path with fewer parameters.
    """

    members: tuple[str, ...]
    layers: int
    repeats: int
    method: Literal["data_flow"] = DATA_FLOW

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """An indicator and a factor for every place, in the order of the path."""
        found = []
        for place, (member, layer) in enumerate(self._places):
            taken = place < self.layers
            found.append(Dimension(f"{place}: take {member} {layer}", *(TAKEN if taken else LEFT)))
            found.append(Dimension(f"{place}: factor", *FACTOR_RANGE))
        return tuple(found)

    def expression(self, point: Point) -> Merge:
        """The stack that a point stands for; a path without a layer keeps the one that came nearest to being taken."""
        indicators = [point[f"{place}: take {member} {layer}"] for place, (member, layer) in enumerate(self._places)]
        taken = [place for place, value in enumerate(indicators) if value > 0]
        taken = taken or [max(range(len(indicators)), key=lambda place: (indicators[place], -place))]
        inputs, stream = [], 1.0
        for place in taken:
            # Scaling a layer's input scales the stream from there on; before a norm only the ratio to it counts.
            stream *= point[f"{place}: factor"]
            member, layer = self._places[place]
            scale = round(1 / stream, PARAMETER_DIGITS)
            inputs.append(Input(model=Member(name=member), parameters={"layer": float(layer), "scale": scale}))
        return Merge(method=DATA_FLOW, inputs=tuple(inputs), base=Member(name=self.members[0]))

    @cached_property
    def _places(self) -> list[tuple[str, int]]:
        return [(name, layer) for _ in range(self.repeats) for name in self.members for layer in range(self.layers)]
