"""The merge of one tensor as a tree of operations over stored tensors. Knows no file.

An expression says what is merged for a whole model; a tree says it for one tensor, with every parameter
resolved for that tensor.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from glue.checkpoints.vocabulary import RowMap
from glue.merging.layers import layer_name
from glue.merging.methods import method_of
from glue.merging.registry import MergeMethod
from glue.specs.base import Spec
from glue.specs.expression import Member, Merge, expression_digest, layers_named, parameters_at


@dataclass(frozen=True)
class Leaf:
    """A stored tensor of a model; `rows` brings an embedding to another vocabulary.

    Rows that it lacks come from other models; `donors` names their tensors where they are called otherwise.
    """

    model: str
    tensor: str
    rows: RowMap | None = None
    donors: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Operation:
    """A method applied to subtrees; `each` are the parameters of the inputs, `key` names the result as a model."""

    method: MergeMethod
    inputs: tuple["Node", ...]
    base: "Node | None"
    options: Spec
    each: tuple[Spec, ...]
    key: str


Node = Leaf | Operation
Planner = Callable[[str], Node]


def planner(expression: Member | Merge) -> Planner:
    """From a tensor's name to its tree; the expression's methods and parameters are checked here, once.

    Raises:
        InvalidInputError: a method or a parameter is unknown or wrong.
    """
    if isinstance(expression, Member):
        model = expression.name
        return lambda tensor: Leaf(model, tensor)
    method = method_of(expression.method)
    method.check(len(expression.inputs), expression.base is not None)
    parameters = _parameters(method, expression)
    branches = [planner(part.model) for part in expression.inputs]
    base = planner(expression.base) if expression.base is not None else None
    key = expression_digest(expression)

    def plan(tensor: str) -> Node:
        inputs = tuple(branch(tensor) for branch in branches)
        options, each = parameters(tensor)
        return Operation(method, inputs, base(tensor) if base else None, options, each, key)

    return plan


def _parameters(method: MergeMethod, expression: Merge) -> Callable[[str], tuple[Spec, tuple[Spec, ...]]]:
    """From a tensor's name to the options and the inputs' parameters that hold for it; checked at once."""

    @cache
    def at(layer: int | None) -> tuple[Spec, tuple[Spec, ...]]:
        options = method.options.parse(parameters_at(expression.parameters, layer))
        return options, tuple(method.per_input.parse(parameters_at(p.parameters, layer)) for p in expression.inputs)

    depth = layers_named(expression)
    for layer in (None, *range(depth)):
        at(layer)

    def of(tensor: str) -> tuple[Spec, tuple[Spec, ...]]:
        name = layer_name(tensor) if depth else None
        return at(name.index if name else None)

    return of


def leaves(node: Node) -> Iterator[Leaf]:
    """All stored tensors in the tree, inputs before the base."""
    if isinstance(node, Leaf):
        yield node
        return
    for branch in (*node.inputs, *((node.base,) if node.base is not None else ())):
        yield from leaves(branch)
