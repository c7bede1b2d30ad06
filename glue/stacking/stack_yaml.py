"""Stack files as checked values, one class a method. Knows no tensor."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from glue.merging.mergekit_yaml import ModelReference, TokenizerSettings
from glue.merging.model_source import ModelSource
from glue.specs.base import Spec, read_yaml
from glue.specs.errors import InvalidInputError, Problem

StoredDtype = Literal["float32", "bfloat16", "float16"]
Ends = Literal["mean", "outer"]


class _Stack(Spec):
    dtype: StoredDtype | None = None
    chat_template: str | None = None


class _Several(_Stack):
    """`ends` says where embedding, norm and head come from: the models' mean, or the embedding from the first model
    and norm and head from the last. By default the mean, and for models of different architectures the outer ones.
    """

    ends: Ends | None = None
    tokenizer: TokenizerSettings | None = None
    tokenizer_source: Literal["union", "base"] | ModelReference | None = None


class Concatenation(_Several):
    """All layers of the first model, then all of the second, and so on (Model-GLUE, arXiv 2410.05357, appendix)."""

    method: Literal["concatenate"]
    models: tuple[ModelSource, ...] = Field(min_length=1, max_length=16)


class Interleaving(_Several):
    """The first layer of each model, then the second of each; what a deeper model has left follows at the end."""

    method: Literal["interleave"]
    models: tuple[ModelSource, ...] = Field(min_length=1, max_length=16)


class DepthUpscaling(_Stack):
    """Two copies of a model, the first without its top layers and the second without its bottom ones.

    Source: SOLAR (arXiv 2312.15166): n layers become 2 (n - m). `dropped` is m; by default a quarter of the layers.
    """

    method: Literal["depth_upscale"]
    model: ModelSource
    dropped: int | None = Field(default=None, ge=0)


class ZeroBlocks(_Stack):
    """New layers that change nothing until they are trained, spread evenly over the depth.

    Source: LLaMA-Pro (arXiv 2401.02415): after every n / `blocks` layers a copy of the last one, with the output
    projections of its attention and its MLP zero.
    """

    method: Literal["zero_blocks"]
    model: ModelSource
    blocks: int = Field(ge=1)


class TopCopies(_Stack):
    """The top `layers` layers once more on top. Source: gradual stacking (arXiv 2403.04978)."""

    method: Literal["copy_top"]
    model: ModelSource
    layers: int = Field(ge=1)


Stack = Concatenation | Interleaving | DepthUpscaling | ZeroBlocks | TopCopies

_METHODS: dict[str, type[Stack]] = {
    "concatenate": Concatenation,
    "interleave": Interleaving,
    "depth_upscale": DepthUpscaling,
    "zero_blocks": ZeroBlocks,
    "copy_top": TopCopies,
}


def sources_of(stack: Stack) -> tuple[ModelSource, ...]:
    """The models of a stack, in order."""
    return stack.models if isinstance(stack, Concatenation | Interleaving) else (stack.model,)


def parse_stack(value: Any) -> Stack:
    """A stack from plain data.

    Raises:
        InvalidInputError: something in it is wrong; with one problem for each mistake.
    """
    method = value.get("method") if isinstance(value, dict) else None
    kind = _METHODS.get(method) if isinstance(method, str) else None
    if kind is None:
        detail = f"there is no way of stacking {method!r}" if method else "method is missing"
        fix = f"set method to one of {', '.join(_METHODS)}"
        raise InvalidInputError(f"/method: {detail}; {fix}", [Problem("/method", "stack_method", detail, fix)])
    return kind.parse(value)


def read_stack_file(path: Path) -> Stack:
    """The checked stack file.

    Raises:
        InvalidInputError: it cannot be read, or something in it is wrong; with one problem for each mistake.
    """
    return parse_stack(read_yaml(path))
