"""Parameter values as mergekit's files write them: scalars, gradients over layers, filters by tensor name.

Pure; knows no model and no method.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from glue.specs.base import Spec

Scalar = bool | int | float | str
ScalarOrGradient = Scalar | list[Scalar]


class Conditional(Spec):
    """A value for the tensors whose name contains `filter`; without a filter, or with `*`, for all."""

    value: ScalarOrGradient
    filter: str | None = None


Setting = Conditional | ScalarOrGradient | list[Conditional]
Settings = Mapping[str, Any]


def value_of(setting: Any, tensor: str, place: float, *, discrete: bool) -> Scalar | None:
    """The value of a setting for a tensor at `place`, from 0 for the first layer to 1 for the last.

    Lists are gradients: numbers are interpolated between their neighbours, others are picked. None where no
    filter matches.
    """
    if isinstance(setting, list) and any(isinstance(part, Conditional) for part in setting):
        matching = (part for part in setting if _matches(part, tensor))
        return next((value_of(part.value, tensor, place, discrete=discrete) for part in matching), None)
    if isinstance(setting, Conditional):
        return value_of([setting], tensor, place, discrete=discrete)
    if isinstance(setting, list):
        return _on_gradient([_scalar(value, discrete) for value in setting], place) if setting else None
    return _scalar(setting, discrete)


def first_value(
    name: str, sources: Iterable[Settings | None], tensor: str, place: float, *, discrete: bool
) -> Scalar | None:
    """The value of the parameter in the first of the settings that has one for this tensor."""
    for settings in sources:
        if settings and name in settings:
            value = value_of(settings[name], tensor, place, discrete=discrete)
            if value is not None:
                return value
    return None


def _matches(part: Conditional, tensor: str) -> bool:
    return part.filter in (None, "*") or str(part.filter) in tensor


def _on_gradient(values: list[Scalar], place: float) -> Scalar:
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return values[int(place * (len(values) - 1))]
    numbers = [float(value) for value in values]
    position = place * (len(numbers) - 1)
    left = int(position)
    right = min(len(numbers) - 1, left + 1)
    return (1 - (position - left)) * numbers[left] + (position - left) * numbers[right]


def _scalar(value: Scalar, discrete: bool) -> Scalar:
    # YAML reads 1e-5 as text; for a number it is one.
    if discrete or not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
