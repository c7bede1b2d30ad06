"""A candidate's recipe in mergekit's words, where they can say it."""

from collections.abc import Mapping
from typing import Any

from glue.specs.expression import ByLayer, Expression, Member, Merge, layers_named


def mergekit_recipe(expression: Expression, sources: Mapping[str, str], dtype: str) -> dict[str, Any] | None:
    """The configuration with which mergekit builds the same model, as plain data for YAML.

    `sources` maps entry names to paths or repositories. None where mergekit cannot say it: nested merges, and
    weights that differ by layer group, whose values for what is in no layer it has no place for.
    """
    if isinstance(expression, Member):
        return {"merge_method": "passthrough", "models": [{"model": sources[expression.name]}], "dtype": dtype}
    leaves = [part.model for part in expression.inputs]
    if layers_named(expression) or not all(isinstance(leaf, Member) for leaf in (*leaves, *_base(expression))):
        return None
    models = [_model(part.model, part.parameters, sources) for part in expression.inputs]
    recipe: dict[str, Any] = {"merge_method": expression.method, "models": models}
    for base in _base(expression):
        assert isinstance(base, Member)
        recipe["base_model"] = sources[base.name]
    parameters = {"parameters": dict(expression.parameters)} if expression.parameters else {}
    return recipe | parameters | {"dtype": dtype}


def _base(expression: Merge) -> tuple[Expression, ...]:
    return () if expression.base is None else (expression.base,)


def _model(leaf: Expression, parameters: Mapping[str, float | ByLayer], sources: Mapping[str, str]) -> dict[str, Any]:
    assert isinstance(leaf, Member)
    return {"model": sources[leaf.name]} | ({"parameters": dict(parameters)} if parameters else {})
