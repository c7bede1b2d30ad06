"""mergekit's merge files as checked values. Knows the format, and no method and no tensor.

Format: mergekit 0.1.5, `config.py` and `tokenizer/config.py`. Models are folders; what this program does not
support is refused with the reason, never skipped.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from glue.merging.mergekit_settings import Setting
from glue.specs.base import Spec, read_yaml
from glue.specs.errors import InvalidInputError, Problem

Parameters = dict[str, Setting]


class ModelReference(Spec):
    """A model's folder as the file writes it, perhaps with the folder of a LoRA adapter to put on it."""

    model: str = Field(min_length=1)
    lora: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return _path_of(value)
        model, *adapters = value.split("+")
        if len(adapters) > 1:
            raise ValueError("a reference is a model, or a model+adapter")
        return {"model": model, "lora": adapters[0] if adapters else None}


class SliceSource(Spec):
    """Layers of one model, from the first of `layer_range` to before the second."""

    model: ModelReference
    layer_range: tuple[int, int]
    parameters: Parameters = {}

    @model_validator(mode="after")
    def _range_is_forward(self) -> Self:
        # A slice without layers says whose embeddings, or whose norm and head, are taken.
        if not 0 <= self.layer_range[0] <= self.layer_range[1]:
            raise ValueError("layer_range is [first, one after the last]")
        return self


class InputModel(Spec):
    """A whole model as an input."""

    model: ModelReference
    parameters: Parameters = {}


class OutputSlice(Spec):
    """Layers of the result, merged from layers of the sources."""

    sources: tuple[SliceSource, ...] = Field(min_length=1)
    base_model: ModelReference | None = None
    parameters: Parameters = {}

    @model_validator(mode="after")
    def _ranges_are_as_long(self) -> Self:
        if len({source.layer_range[1] - source.layer_range[0] for source in self.sources}) > 1:
            raise ValueError("all sources of a slice must have the same number of layers")
        return self


class OutputModule(Spec):
    """A part of a model; causal language models have one, so there is one at most."""

    slices: tuple[OutputSlice, ...] = ()
    models: tuple[InputModel, ...] = ()
    parameters: Parameters = {}

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.slices) == bool(self.models):
            raise ValueError("a module has either slices or models")
        return self


class TokenSource(Spec):
    """Where a token's row comes from: a token of a model, by text or id, or zero."""

    kind: Literal["model_token", "zero"]
    model: ModelReference | None = None
    token: str | None = None
    token_id: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        named = (self.token is not None) + (self.token_id is not None)
        if self.kind == "model_token" and (self.model is None or named != 1):
            raise ValueError("a model_token needs its model and either token or token_id")
        return self


class TokenSettings(Spec):
    """The row of one token: from a source, for the models that lack it, or with `force` for all."""

    source: TokenSource | ModelReference | None = None
    force: bool = False


class TokenizerSettings(Spec):
    """The result's tokenizer: the base's, the union of all, or a model's."""

    source: Literal["union", "base"] | ModelReference = "union"
    tokens: dict[str, TokenSettings] = {}
    pad_to_multiple_of: int | None = Field(default=None, ge=1)


class MergekitFile(Spec):
    """A merge file with exactly one of `models`, `slices` and `modules`."""

    merge_method: str
    models: tuple[InputModel, ...] = ()
    slices: tuple[OutputSlice, ...] = ()
    modules: dict[str, OutputModule] = Field(default={}, max_length=1)
    base_model: ModelReference | None = None
    parameters: Parameters = {}
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: TokenizerSettings | None = None
    tokenizer_source: Literal["union", "base"] | ModelReference | None = None
    chat_template: str | None = None

    @field_validator("dtype", "out_dtype")
    @classmethod
    def _known_dtype(cls, value: str | None) -> str | None:
        name = value.removeprefix("torch.") if value else None
        if name not in (None, "float32", "bfloat16", "float16"):
            raise ValueError("models are stored as float32, bfloat16 or float16")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.models) + bool(self.slices) + bool(self.modules) != 1:
            raise ValueError("give exactly one of models, slices and modules")
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise ValueError("give tokenizer or tokenizer_source, not both")
        return self

    @property
    def module(self) -> OutputModule:
        """The one module, however it was written."""
        if self.modules:
            return next(iter(self.modules.values()))
        return OutputModule(models=self.models, slices=self.slices)

    @property
    def tokenizer_settings(self) -> TokenizerSettings | None:
        """The tokenizer's settings, however they were written; none where the donor's is copied."""
        if self.tokenizer_source is not None:
            return TokenizerSettings(source=self.tokenizer_source)
        return self.tokenizer

    def references(self) -> tuple[ModelReference, ...]:
        """Every model that is mentioned, each once: the base, the inputs in order, then donors of tokens."""
        module = self.module
        mentioned = [self.base_model, *(part.model for part in module.models)]
        for part in module.slices:
            mentioned += [part.base_model, *(source.model for source in part.sources)]
        settings = self.tokenizer_settings
        if settings is not None:
            mentioned += [settings.source] if isinstance(settings.source, ModelReference) else []
            for token in settings.tokens.values():
                source = token.source
                mentioned.append(source.model if isinstance(source, TokenSource) else source)
        return tuple(dict.fromkeys(reference for reference in mentioned if reference is not None))


def read_mergekit_file(path: Path) -> MergekitFile:
    """The checked content of a merge file.

    Raises:
        InvalidInputError: it cannot be read, or a key is unknown, wrong or not supported; one problem for each.
    """
    value = read_yaml(path)
    if not isinstance(value, dict):
        fix = "a file of mergekit-multi holds several merges; run them one by one, or nest them in a job"
        raise InvalidInputError(
            f"{path.name} is not one merge; {fix}", [Problem("", "not_a_merge", "not a mapping", fix)]
        )
    return MergekitFile.parse(value)


def _path_of(value: Any) -> Any:
    if isinstance(value, dict):
        if "override_architecture" in value:
            raise ValueError("override_architecture is not supported: a model is what its config says")
        return {
            key: inner["path"] if isinstance(inner, dict) and "path" in inner else inner for key, inner in value.items()
        }
    return value
