"""A candidate's recipe in mergekit's words, where they can say it."""

from collections.abc import Mapping
from typing import Any, cast

from glue.specs.expression import ByLayer, Expression, Member, Merge, is_data_flow, layers_named, members_of
from glue.specs.projections import output_filters


def mergekit_recipe(expression: Expression, sources: Mapping[str, str], dtype: str) -> dict[str, Any] | None:
    """The configuration with which mergekit builds the same model, as plain data for YAML.

    `sources` maps entry names to paths or repositories. None where mergekit cannot say it: nested merges, and
    weights that differ by layer group, whose values for what is in no layer it has no place for.
    """
    if isinstance(expression, Member):
        return {"merge_method": "passthrough", "models": [{"model": sources[expression.name]}], "dtype": dtype}
    if is_data_flow(expression):
        return _slices(expression, sources, dtype)
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


def _slices(expression: Merge, sources: Mapping[str, str], dtype: str) -> dict[str, Any]:
    """Layers as slices of one layer each, between two of none.

    mergekit takes what lies before and behind all layers from the first and the last slice's model.
    """
    (ends,) = (members_of(base)[0] for base in _base(expression))
    nothing: dict[str, Any] = {"sources": [{"model": sources[ends], "layer_range": [0, 0]}]}
    slices = [nothing]
    for part in expression.inputs:
        (model,), layer = members_of(part.model), int(cast(float, part.parameters["layer"]))
        scale = part.parameters.get("scale", 1.0)
        source: dict[str, Any] = {"model": sources[model], "layer_range": [layer, layer + 1]}
        if scale != 1.0:
            filters = [{"filter": name, "value": scale} for name in output_filters()]
            source["parameters"] = {"scale": [*filters, {"value": 1.0}]}
        slices.append({"sources": [source]})
    slices.append(nothing)
    return {"merge_method": "passthrough", "base_model": sources[ends], "slices": slices, "dtype": dtype}


def _base(expression: Merge) -> tuple[Expression, ...]:
    return () if expression.base is None else (expression.base,)


def _model(leaf: Expression, parameters: Mapping[str, float | ByLayer], sources: Mapping[str, str]) -> dict[str, Any]:
    assert isinstance(leaf, Member)
    return {"model": sources[leaf.name]} | ({"parameters": dict(parameters)} if parameters else {})
