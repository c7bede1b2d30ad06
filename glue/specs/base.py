"""The base of every spec: frozen, complete, and helpful about unknown keys."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationError

from glue.specs.errors import InvalidInputError, Problem

MAX_SPEC_BYTES = 512 * 1024

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Spec(BaseModel):
    """A value that a user writes. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Validate plain data.

        Raises:
            InvalidInputError: with one problem for each mistake.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            problems = problems_of(error, cls)
            raise InvalidInputError(_summary(problems), problems) from None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data with every default filled in."""
        return self.model_dump(mode="json")


def read_yaml(path: Path) -> Any:
    """Plain data from a YAML file of at most 512 KiB.

    Raises:
        InvalidInputError: the file is missing, too large or not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from None
    if len(text) > MAX_SPEC_BYTES:
        raise InvalidInputError(f"{path} is larger than {MAX_SPEC_BYTES // 1024} KiB")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInputError(f"{path} is not YAML: {error}") from None


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Pydantic's findings as problems with JSON pointers, and for an unknown key its nearest neighbour."""
    details = error.errors(include_url=False, include_context=False)
    places = [detail["loc"] for detail in details]
    # An invalid item also makes pydantic call its list too short; the item's own problem says all.
    told = [d for d in details if d["type"] != "too_short" or not any(_inside(place, d["loc"]) for place in places)]
    return [_problem(detail, model) for detail in told]


def _inside(place: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer


def _problem(detail: Any, model: type[BaseModel]) -> Problem:
    parts, known = _walk(detail["loc"], model)
    pointer = "".join(f"/{part}" for part in parts)
    if detail["type"] != "extra_forbidden":
        return Problem(pointer, detail["type"], detail["msg"])
    key = str(parts[-1])
    nearest = get_close_matches(key, list(known), n=1, cutoff=0.5)
    fix = f"did you mean '{nearest[0]}'?" if nearest else "remove it"
    return Problem(pointer, "unknown_key", f"unknown key '{key}'", fix)


def _walk(location: tuple[Any, ...], model: type[BaseModel]) -> tuple[list[Any], Iterator[str]]:
    """The place as the user wrote it, without the tags of unions, and the keys that are allowed there."""
    models, parts = [model], []
    for part in location:
        tagged = [candidate for candidate in models if part in _tags(candidate)]
        fields = [candidate.model_fields[part] for candidate in models if part in candidate.model_fields]
        if tagged and not fields:
            models = tagged
            continue
        parts.append(part)
        # A list's index names no field: stay with the same models.
        models = [found for field in fields for found in _models_in(field.annotation)] or models
    return parts, (key for candidate in models for key in candidate.model_fields)


def _tags(model: type[BaseModel]) -> set[Any]:
    """The values by which a union tells this model from its others."""
    literals = [field.annotation for field in model.model_fields.values() if get_origin(field.annotation) is Literal]
    return {value for literal in literals for value in get_args(literal)}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    arguments = getattr(annotation, "__args__", ())
    return [model for argument in arguments for model in _models_in(argument)]


def _summary(problems: list[Problem]) -> str:
    first = problems[0]
    rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    fix = f"; {first.fix}" if first.fix else ""
    return f"{first.pointer or '/'}: {first.detail}{fix}{rest}"


def _number(value: Any) -> Any:
    # YAML's safe loader reads 1e-6 as text; people mean the number.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number)]
