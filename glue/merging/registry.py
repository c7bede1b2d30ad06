"""The merge methods by name, with the parameters that each takes and what each must know beforehand. Knows no file.

A method is a function from the operands of one tensor to a kernel that gives any block of the result. What
needs a look at the whole tensor, such as norms or thresholds, is found by passes over the blocks before the
kernel is returned. What needs a look at whole models, or statistics of them, is found by a survey before the
first tensor is merged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from glue.checkpoints.reader import Checkpoint
from glue.merging.blocks import Grid, Kernel, Source
from glue.specs.base import Spec
from glue.specs.errors import InvalidInputError, Problem

Options = TypeVar("Options", bound=Spec, covariant=True)
PerInput = TypeVar("PerInput", bound=Spec, covariant=True)
Found = TypeVar("Found")


class BaseUse(StrEnum):
    """Whether a method takes a base model."""

    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


class NoParameters(Spec):
    """Of a method, or of its inputs, that takes none."""


@dataclass(frozen=True)
class Operands(Generic[Options, PerInput]):
    """What a method merges for one tensor: the inputs in order, each with its parameters, and perhaps a base."""

    tensor: str
    grid: Grid
    inputs: tuple[Source, ...]
    base: Source | None
    options: Options
    each: tuple[PerInput, ...]


@dataclass(frozen=True)
class Whole(Generic[Options, PerInput]):
    """A merge of whole models, as a survey sees it.

    `tensors` are the result's weights in the order in which they are stored, each with its shape, `config` is its
    config, `each` are the inputs' parameters for one of them, `operands` gives what is merged for it. `statistics`
    opens the inputs' statistics of a kind, in order; their tensors are named as the weights that they belong to.
    `told` hears what the survey is doing.
    """

    tensors: Mapping[str, tuple[int, ...]]
    each: Mapping[str, tuple[PerInput, ...]]
    config: Mapping[str, Any]
    operands: Callable[[str], Operands[Options, PerInput]]
    statistics: Callable[[str], tuple[Checkpoint, ...]]
    told: Callable[[str], None]


def _always(options: Spec) -> bool:
    return True


def _nothing_wrong(whole: Whole[Any, Any]) -> None:
    """What a survey without conditions of its own checks."""


@dataclass(frozen=True)
class Survey(Generic[Options, PerInput, Found]):
    """What a method finds out about whole models before the first tensor is merged.

    `take` finds it, where the options make it `wanted`. Before any weight is read, `check` raises what the method
    cannot do, and every input is asked for the kinds of `statistics` that it must bring.
    """

    take: Callable[[Whole[Options, PerInput]], Found]
    wanted: Callable[[Options], bool] = _always
    statistics: tuple[str, ...] = ()
    check: Callable[[Whole[Options, PerInput]], None] = _nothing_wrong


@dataclass(frozen=True)
class MergeMethod:
    """A registered method.

    `fewest` and `most` bound the number of inputs, the base not counted. `prepare` gives the kernel from the
    operands and what the `survey` found; None where there was none. `starts_at_base` says that what mergekit's
    files call the base is the first input here.
    """

    name: str
    prepare: Callable[[Operands[Any, Any], Any], Kernel]
    options: type[Spec]
    per_input: type[Spec]
    base: BaseUse
    fewest: int
    most: int | None
    starts_at_base: bool = False
    survey: Survey[Any, Any, Any] | None = None

    def check(self, inputs: int, base: bool) -> None:
        """Check the number of inputs and the presence of a base.

        Raises:
            InvalidInputError: the method cannot be used so.
        """
        if base and self.base is BaseUse.NONE:
            raise _invalid(f"{self.name} takes no base model", "remove the base")
        if not base and self.base is BaseUse.REQUIRED:
            raise _invalid(f"{self.name} needs a base model", "name the model that the inputs were fine-tuned from")
        if inputs < self.fewest or (self.most is not None and inputs > self.most):
            wanted = f"{self.fewest}" if self.fewest == self.most else f"at least {self.fewest}"
            raise _invalid(f"{self.name} merges {wanted} models, not {inputs}", "change the number of inputs")


_METHODS: dict[str, MergeMethod] = {}


def merge_method(
    name: str,
    *,
    options: type[Options],
    per_input: type[PerInput],
    base: BaseUse,
    fewest: int = 1,
    most: int | None = None,
    starts_at_base: bool = False,
) -> Callable[[Callable[[Operands[Options, PerInput]], Kernel]], Callable[[Operands[Options, PerInput]], Kernel]]:
    """Register the decorated function as the method of that name; a tensor's operands are all that it needs."""

    def register(
        prepare: Callable[[Operands[Options, PerInput]], Kernel],
    ) -> Callable[[Operands[Options, PerInput]], Kernel]:
        def alone(operands: Operands[Options, PerInput], found: None) -> Kernel:
            return prepare(operands)

        _add(MergeMethod(name, alone, options, per_input, base, fewest, most, starts_at_base))
        return prepare

    return register


def surveying_method(
    name: str,
    *,
    survey: Survey[Options, PerInput, Found],
    options: type[Options],
    per_input: type[PerInput],
    base: BaseUse,
    fewest: int = 1,
    most: int | None = None,
) -> Callable[
    [Callable[[Operands[Options, PerInput], Found | None], Kernel]],
    Callable[[Operands[Options, PerInput], Found | None], Kernel],
]:
    """Register the decorated function as the method of that name; it also gets what the survey found."""

    def register(
        prepare: Callable[[Operands[Options, PerInput], Found | None], Kernel],
    ) -> Callable[[Operands[Options, PerInput], Found | None], Kernel]:
        _add(MergeMethod(name, prepare, options, per_input, base, fewest, most, survey=survey))
        return prepare

    return register


def _add(method: MergeMethod) -> None:
    if method.name in _METHODS:
        raise ValueError(f"two methods are called {method.name}")
    _METHODS[method.name] = method


def method_of(name: str) -> MergeMethod:
    """The method of that name.

    Raises:
        InvalidInputError: there is none.
    """
    if name not in _METHODS:
        raise _invalid(f"there is no merge method '{name}'", f"choose one of {', '.join(sorted(_METHODS))}")
    return _METHODS[name]


def all_methods() -> Mapping[str, MergeMethod]:
    """Every method by name."""
    return dict(_METHODS)


def _invalid(detail: str, fix: str) -> InvalidInputError:
    return InvalidInputError(f"{detail}; {fix}", [Problem("/method", "merge_method", detail, fix)])
