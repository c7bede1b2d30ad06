"""A candidate as a pure value: an expression tree over zoo members, with a digest."""

from collections.abc import Mapping
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field

from glue.specs.base import Name, Number, Spec
from glue.specs.digests import digest_of


class Member(Spec):
    """A leaf: one model of the zoo, as it is."""

    node: Literal["member"] = "member"
    name: Name


class ByLayer(Spec):
    """A parameter that differs by layer: layer l of `layers` takes `groups[l * len(groups) // layers]`.

    `outside` is for everything that is in no layer: embeddings, final norm and head together.
    """

    layers: int = Field(ge=1)
    groups: tuple[Number, ...] = Field(min_length=1)
    outside: Number

    def at(self, layer: int | None) -> float:
        """The value for a layer, or for what is in none."""
        return self.outside if layer is None else self.groups[layer * len(self.groups) // self.layers]


Parameter = Number | bool | str | ByLayer


class Input(Spec):
    """One input of a merge with the parameters that belong to it, such as its weight."""

    model: "Expression"
    parameters: dict[str, Number | ByLayer] = {}


class Merge(Spec):
    """A merge of its inputs by one method; `base` is what task vectors are taken from."""

    node: Literal["merge"] = "merge"
    method: str
    inputs: tuple[Input, ...] = Field(min_length=1)
    base: "Expression | None" = None
    parameters: dict[str, Parameter] = {}


# The method of an expression whose inputs are layers, in order, each with `layer` and perhaps `scale`, and whose base
# gives what is in no layer.
DATA_FLOW: Literal["data_flow"] = "data_flow"

Expression = Annotated[Member | Merge, Field(discriminator="node")]
Input.model_rebuild()
Merge.model_rebuild()


class Candidate(Spec):
    """One proposed model. The name is for people; the identity is the expression's digest.

    `parameters` are the point of a search space that the expression was made from, where there is one.
    """

    name: str
    expression: Expression
    parameters: dict[str, float] = {}


def linear(weights: Mapping[str, float]) -> Member | Merge:
    """The linear merge of members with these weights; weights of zero are left out, one member is a leaf."""
    kept = {name: weight for name, weight in weights.items() if weight != 0}
    if len(kept) == 1:
        return Member(name=next(iter(kept)))
    inputs = tuple(Input(model=Member(name=name), parameters={"weight": weight}) for name, weight in kept.items())
    return Merge(method="linear", inputs=inputs)


def is_data_flow(expression: Member | Merge) -> bool:
    """Whether the expression stacks layers instead of averaging weights, so that its depth is its own."""
    return isinstance(expression, Merge) and expression.method == DATA_FLOW


def parameters_at(parameters: Mapping[str, Parameter], layer: int | None) -> dict[str, float | bool | str]:
    """The parameters as they are in one layer, or outside of all."""
    return {key: value.at(layer) if isinstance(value, ByLayer) else value for key, value in parameters.items()}


def layers_named(expression: Merge) -> int:
    """The number of layers that this merge's own parameters speak of; 0 when none differs by layer."""
    own = [
        *expression.parameters.values(),
        *(value for part in expression.inputs for value in part.parameters.values()),
    ]
    return max((value.layers for value in own if isinstance(value, ByLayer)), default=0)


def parse_expression(value: Any) -> Member | Merge:
    """An expression from plain JSON data."""
    return Candidate.parse({"name": "", "expression": value}).expression


def members_of(expression: Member | Merge) -> tuple[str, ...]:
    """The names of all members in the tree, each once, in order of appearance."""
    if isinstance(expression, Member):
        return (expression.name,)
    branches = [part.model for part in expression.inputs]
    if expression.base is not None:
        branches.append(expression.base)
    return tuple(dict.fromkeys(name for branch in branches for name in members_of(branch)))


def weights_of(expression: Member | Merge) -> dict[str, float]:
    """The members' weights of a flat merge: of one that differs by layer the mean over the groups; of a leaf 1.

    Of a stack of layers each member's share of them.
    """
    if isinstance(expression, Member):
        return {expression.name: 1.0}
    if is_data_flow(expression):
        taken = [members_of(part.model)[0] for part in expression.inputs]
        return {name: taken.count(name) / len(taken) for name in dict.fromkeys(taken)}
    return {members_of(part.model)[0]: _mean_weight(part.parameters.get("weight", 1.0)) for part in expression.inputs}


def _mean_weight(weight: float | ByLayer) -> float:
    return fmean(weight.groups) if isinstance(weight, ByLayer) else float(weight)


def expression_digest(expression: Member | Merge, contents: Mapping[str, str] | None = None) -> str:
    """The digest of the tree; with `contents` (entry name to content digest) it names weights, not entries."""
    return digest_of(_named(expression.as_json(), contents or {}))


def _named(value: Any, contents: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_named(part, contents) for part in value]
    if not isinstance(value, dict):
        return value
    if value.get("node") == "member":
        return {"node": "member", "name": contents.get(value["name"], value["name"])}
    return {key: _named(part, contents) for key, part in value.items()}
