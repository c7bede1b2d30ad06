"""From a merge file of mergekit's to a recipe: which tensors of which models make each tensor of the result.

Layers are found by tensor names, so no list of architectures is needed. Reads headers and configs only.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_origin

import torch
from pydantic.fields import FieldInfo

from glue.checkpoints.architecture import architecture_of, stored_tensors
from glue.checkpoints.dtypes import config_dtype, dtype_name
from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.shards import PlannedTensor
from glue.checkpoints.vocabulary import load_tokenizer
from glue.merging.layers import layer_count, layer_name, with_layers
from glue.merging.mergekit_settings import Settings, first_value
from glue.merging.mergekit_tokenizer import (
    chat_template,
    merged_tokenizer,
    tokenizer_writer,
)
from glue.merging.mergekit_yaml import MergekitFile, ModelReference, OutputModule, OutputSlice, SliceSource
from glue.merging.methods import method_of
from glue.merging.recipe import Recipe, planned
from glue.merging.registry import BaseUse
from glue.merging.tree import Leaf, Node, Operation
from glue.references.headers import TensorInfo
from glue.specs.base import Spec
from glue.specs.errors import IncompatibleModelsError, InvalidInputError, Problem


@dataclass(frozen=True)
class _Part:
    """One tensor of the result: its name, its sources with the name each gives it, its slice and its place in it."""

    name: str
    sources: tuple[tuple[SliceSource, str], ...]
    slice: OutputSlice
    place: float


def names_of(file: MergekitFile) -> dict[ModelReference, str]:
    """A name for every model of the file that does not depend on where it lies."""
    return {reference: f"model{number}" for number, reference in enumerate(file.references())}


def stored_dtype(file: MergekitFile, checkpoints: Mapping[str, Checkpoint]) -> str:
    """The dtype in which the result is stored: `out_dtype`, else `dtype`, else that of the first model."""
    first = checkpoints[names_of(file)[file.references()[0]]].config
    return str(file.out_dtype or file.dtype or dtype_name(first))


def recipe_of_file(
    file: MergekitFile, checkpoints: Mapping[str, Checkpoint], defaults: Settings | None = None
) -> Recipe:
    """The recipe of a merge file; `checkpoints` are its models by `names_of`, `defaults` parameters that it may set.

    Raises:
        InvalidInputError: a method or a parameter is unknown or wrong.
        IncompatibleModelsError: a model is incomplete, or the models do not fit together.
    """
    return _Planner(file, checkpoints, defaults or {}).recipe()


class _Planner:
    def __init__(self, file: MergekitFile, checkpoints: Mapping[str, Checkpoint], defaults: Settings) -> None:
        self._file, self._checkpoints, self._defaults = file, checkpoints, defaults
        self._names = names_of(file)
        self._method = method_of(file.merge_method)
        self._donor = checkpoints[self._names[file.base_model or file.references()[0]]]
        used = {source.model for part in self._slices() for source in part.sources}
        self._stored = {reference: self._stored_of(reference) for reference in used}
        self._tokenizer = merged_tokenizer(file, self._names, checkpoints)

    def recipe(self) -> Recipe:
        """The whole recipe."""
        parts = tuple(self._parts())
        nodes = {part.name: self._node(part) for part in parts}
        dtype = config_dtype(stored_dtype(self._file, self._checkpoints))
        tensors = tuple(self._planned(part, dtype) for part in parts)
        return Recipe(tensors, nodes.__getitem__, self._config(), self._donor.folder, self._finish())

    # --- which tensors -------------------------------------------------------------------------------------------

    def _slices(self) -> tuple[OutputSlice, ...]:
        module: OutputModule = self._file.module
        if module.slices:
            return module.slices
        models = list(module.models)
        sources = [
            SliceSource(model=one.model, layer_range=(0, self._layers(one.model)), parameters=one.parameters)
            for one in models
        ]
        base = self._file.base_model
        if base is not None and base not in {one.model for one in models}:
            sources.append(SliceSource(model=base, layer_range=(0, self._layers(base))))
        return (OutputSlice(sources=tuple(sources)),)

    def _layers(self, reference: ModelReference) -> int:
        return layer_count(self._checkpoints[self._names[reference]].config)

    def _stored_of(self, reference: ModelReference) -> dict[str, TensorInfo]:
        checkpoint = self._checkpoints[self._names[reference]]
        return stored_tensors(architecture_of(checkpoint.config), checkpoint.tensors, reference.model)

    def _parts(self) -> Iterator[_Part]:
        slices = self._slices()
        before, after = self._outside(slices)
        for name in before:
            yield _Part(name, tuple((source, name) for source in slices[0].sources), slices[0], 0.0)
        offset = 0
        for part in slices:
            count = part.sources[0].layer_range[1] - part.sources[0].layer_range[0]
            for step in range(count):
                yield from self._layer(part, step, offset + step, step / (count - 1) if count > 1 else 1.0)
            offset += count
        for name in after:
            yield _Part(name, tuple((source, name) for source in slices[-1].sources), slices[-1], 0.0)

    def _outside(self, slices: tuple[OutputSlice, ...]) -> tuple[list[str], list[str]]:
        """Tensors outside the layers: those before them come from the first slice's models, others from the last's."""
        first, last = (self._stored[part.sources[0].model] for part in (slices[0], slices[-1]))
        architecture = architecture_of(self._donor.config)
        leads = {name: architecture.canonical(name) in architecture.leading for name in (*first, *last)}
        before = [name for name in first if layer_name(name) is None and leads[name]]
        after = [name for name in last if layer_name(name) is None and not leads[name]]
        return before, after

    def _layer(self, part: OutputSlice, step: int, index: int, place: float) -> Iterator[_Part]:
        first = part.sources[0]
        for name in self._stored[first.model]:
            found = layer_name(name)
            if found is None or found.index != first.layer_range[0] + step:
                continue
            sources = tuple((source, found.at(source.layer_range[0] + step)) for source in part.sources)
            yield _Part(found.at(index), sources, part, place)

    # --- their trees ---------------------------------------------------------------------------------------------

    def _node(self, part: _Part) -> Node:
        base = part.slice.base_model or self._file.base_model
        sources, origin = self._arranged(part, base)
        self._method.check(len(sources), origin is not None)
        shared = (part.slice.parameters, self._file.module.parameters, self._file.parameters, self._defaults)
        options = _resolved(self._method.options, shared, part.name, part.place)
        each = tuple(
            _resolved(self._method.per_input, (source.parameters, *shared), name, part.place)
            for source, name in sources
        )
        inputs = tuple(self._leaf(source, name) for source, name in sources)
        return Operation(
            self._method, inputs, self._leaf(*origin) if origin is not None else None, options, each, key="result"
        )

    def _arranged(
        self, part: _Part, base: ModelReference | None
    ) -> tuple[list[tuple[SliceSource, str]], tuple[SliceSource, str] | None]:
        """The inputs in the method's order, and the base where the method has one.

        mergekit's files list the base among the models. Where our method takes no base, it is an input like
        others, or the first of them.
        """
        bases = [each for each in part.sources if each[0].model == base]
        others = [each for each in part.sources if each[0].model != base]
        if self._method.starts_at_base:
            if not bases:
                raise _unfit(f"{self._method.name} needs base_model: it is the one of its models to start from")
            return [*bases, *others], None
        if self._method.base is BaseUse.NONE:
            return list(part.sources), None
        if base is not None and not bases:
            raise _unfit(f"the base model is not among the sources of a slice, and {self._method.name} needs it there")
        return others, bases[0] if bases else None

    def _leaf(self, source: SliceSource, name: str) -> Leaf:
        model = self._names[source.model]
        info = self._stored[source.model].get(name)
        if info is None:
            raise IncompatibleModelsError(f"{source.model.model} has no tensor {name}, which other models have")
        rows = self._tokenizer.maps[model] if self._tokenizer and self._is_vocabulary(source.model, info) else None
        if rows is not None and rows.is_identity and info.shape[0] == rows.rows:
            rows = None
        return Leaf(model, name, rows)

    def _is_vocabulary(self, reference: ModelReference, info: TensorInfo) -> bool:
        size = self._checkpoints[self._names[reference]].config.get("vocab_size")
        return layer_name(info.name) is None and bool(info.shape) and info.shape[0] == size

    # --- what is written -----------------------------------------------------------------------------------------

    def _planned(self, part: _Part, dtype: torch.dtype) -> PlannedTensor:
        infos = [(source, self._stored[source.model][name]) for source, name in part.sources]
        source, info = infos[0]
        shapes = {self._shape(source, info) for source, info in infos}
        if len(shapes) > 1:
            fix = "; set tokenizer: {source: union} or base" if self._is_vocabulary(source.model, info) else ""
            raise IncompatibleModelsError(f"{part.name} has different shapes: {sorted(shapes)}{fix}")
        return replace(planned(info, dtype), name=part.name, shape=shapes.pop())

    def _shape(self, source: SliceSource, info: TensorInfo) -> tuple[int, ...]:
        if self._tokenizer is None or not self._is_vocabulary(source.model, info):
            return info.shape
        if len(info.shape) == 1 and info.shape[0] != self._tokenizer.rows:
            raise IncompatibleModelsError(
                f"{info.name} is a vector over the vocabulary; those cannot be re-ordered yet"
            )
        return (self._tokenizer.rows, *info.shape[1:])

    def _config(self) -> dict[str, Any]:
        config = dict(self._donor.config)
        if self._tokenizer is not None:
            config["vocab_size"] = self._tokenizer.rows
        if self._file.module.slices:
            layers = [layer for part in self._slices() for layer in range(*part.sources[0].layer_range)]
            config = with_layers(config, [min(layer, layer_count(config) - 1) for layer in layers])
        return config

    def _finish(self) -> Callable[[Path], None] | None:
        folders = [self._checkpoints[name].folder for name in self._names.values()]
        template = chat_template(self._file, folders)
        if self._tokenizer is not None:
            return tokenizer_writer(self._tokenizer.tokenizer, template)
        if template is not None:
            return tokenizer_writer(load_tokenizer(self._donor.folder), template)
        return None


def unused_parameters(file: MergekitFile) -> tuple[str, ...]:
    """The parameters that the file sets and the method does not know; mergekit ignores them without a word."""
    method = method_of(file.merge_method)
    known = {
        _key(name, field) for kind in (method.options, method.per_input) for name, field in kind.model_fields.items()
    }
    module = file.module
    settings = [file.parameters, module.parameters]
    settings += [one.parameters for one in module.models]
    for part in module.slices:
        settings += [part.parameters, *(source.parameters for source in part.sources)]
    return tuple(sorted({name for each in settings for name in each} - known))


def _resolved(kind: type[Spec], sources: tuple[Settings, ...], tensor: str, place: float) -> Spec:
    values = {}
    for name, field in kind.model_fields.items():
        key = _key(name, field)
        value = first_value(key, sources, tensor, place, discrete=_is_discrete(field))
        if value is not None:
            values[key] = value
        elif field.is_required():
            raise _unfit(f"the parameter {key} has no value for {tensor}", f"/parameters/{key}")
    return kind.parse(values)


def _key(name: str, field: FieldInfo) -> str:
    return field.alias or name


def _is_discrete(field: FieldInfo) -> bool:
    return field.annotation is bool or get_origin(field.annotation) is Literal


def _unfit(detail: str, pointer: str = "/merge_method") -> InvalidInputError:
    return InvalidInputError(detail, [Problem(pointer, "merge_file", detail)])
