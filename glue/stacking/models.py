"""The models of a stack under their full tensor names, with a common vocabulary. Knows no method of stacking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glue.checkpoints.architecture import Architecture, architecture_of, embedding_parameter, head_parameter, meta_model
from glue.checkpoints.parts import own_tensors
from glue.checkpoints.reader import Checkpoint
from glue.merging.layers import layer_count, layer_name
from glue.merging.mergekit_tokenizer import MergedTokenizer, merged_tokenizer
from glue.merging.mergekit_yaml import MergekitFile, ModelReference
from glue.merging.methods import method_of
from glue.merging.tree import Leaf, Node, Operation
from glue.references.headers import TensorInfo
from glue.references.reading import refusal
from glue.references.signature import has_tokenizer, tokenizer_digest
from glue.specs.errors import IncompatibleModelsError


@dataclass(frozen=True)
class StackModel:
    """One model: `key` names it in the engine, `settings` is its config with all defaults.

    `tensors` have full names; a tied head is under its own name the embedding once more.
    """

    key: str
    name: str
    checkpoint: Checkpoint
    settings: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def of(cls, key: str, name: str, checkpoint: Checkpoint) -> "StackModel":
        """A checkpoint as a model of a stack.

        Raises:
            IncompatibleModelsError: it is not a complete causal language model of a stock architecture.
        """
        stored = own_tensors(name, checkpoint)
        stored |= {head: stored[source] for head, source in architecture_of(checkpoint.config).tied.items()}
        infos = {tensor: checkpoint.info(source) for tensor, source in stored.items()}
        return cls(key, name, checkpoint, meta_model(checkpoint.config).config.to_dict(), infos)

    @property
    def architecture(self) -> Architecture:
        """What transformers' own save of the model would write."""
        return architecture_of(self.checkpoint.config)

    @property
    def is_tied(self) -> bool:
        """Whether its head is its embedding."""
        return bool(self.architecture.tied)

    @property
    def embedding(self) -> str:
        """The full name of its embedding."""
        return embedding_parameter(self.checkpoint.config)

    @property
    def head(self) -> str:
        """The full name of its head; of a tied one that of the embedding."""
        return head_parameter(self.checkpoint.config)

    @property
    def depth(self) -> int:
        """The number of layers."""
        return layer_count(self.checkpoint.config)

    def layer(self, index: int) -> list[str]:
        """The full names of one layer's tensors."""
        names = ((name, layer_name(name)) for name in self.tensors)
        return [name for name, found in names if found is not None and found.index == index]


class Vocabulary:
    """Tensors as leaves of trees, embeddings and heads brought to the vocabulary that `file` asks for.

    Raises:
        InvalidInputError: a tokenizer cannot be loaded, or a named token does not exist.
        IncompatibleModelsError: tokenizers differ and nothing says what the result's is.
    """

    def __init__(
        self,
        models: Sequence[StackModel],
        file: MergekitFile,
        references: Mapping[ModelReference, str],
    ) -> None:
        checkpoints = {model.key: model.checkpoint for model in models}
        self.tokenizer: MergedTokenizer | None = merged_tokenizer(file, references, checkpoints)
        self._embeddings = {model.key: model.tensors[model.embedding].name for model in models}
        self._heads = {model.key: model.tensors[model.head].name for model in models}
        if self.tokenizer is None:
            _check_one_tokenizer(models)

    def rows(self, model: StackModel) -> int:
        """The rows of the result's embedding, if it is this model's or made of it."""
        return self.tokenizer.rows if self.tokenizer else int(model.settings["vocab_size"])

    def leaf(self, model: StackModel, tensor: str) -> tuple[Leaf, tuple[int, ...]]:
        """A model's tensor and its shape in the result.

        Raises:
            IncompatibleModelsError: there is no such tensor, or one over the vocabulary that cannot be re-ordered.
        """
        info = model.tensors.get(tensor)
        if info is None:
            raise refusal("tensor_missing", f"{model.name} has no tensor {tensor}", "stack models of one kind")
        if self.tokenizer is None or not _is_over_vocabulary(model, info):
            return Leaf(model.key, info.name), info.shape
        rows = self.tokenizer.maps[model.key]
        if rows.is_identity and info.shape[0] == rows.rows:
            return Leaf(model.key, info.name), info.shape
        if len(info.shape) == 1:
            raise IncompatibleModelsError(f"{info.name} is a vector over the vocabulary; it cannot be re-ordered")
        donors = self._embeddings if tensor == model.embedding else self._heads
        return Leaf(model.key, info.name, rows, donors), (rows.rows, *info.shape[1:])


def mean_of(leaves: Sequence[Leaf]) -> Node:
    """The mean of tensors; of one, or of the same one several times, itself."""
    different = list(dict.fromkeys((leaf.model, leaf.tensor) for leaf in leaves))
    if len(different) == 1:
        return leaves[0]
    method = method_of("linear")
    each = method.per_input.parse({"weight": 1.0})
    return Operation(method, tuple(leaves), None, method.options.parse({}), (each,) * len(leaves), key="result")


def silenced(leaf: Leaf) -> Node:
    """Zeros of the tensor's shape."""
    method = method_of("passthrough")
    return Operation(method, (leaf,), None, method.options.parse({}), (method.per_input.parse({"scale": 0.0}),), "zero")


def _is_over_vocabulary(model: StackModel, info: TensorInfo) -> bool:
    return layer_name(info.name) is None and bool(info.shape) and info.shape[0] == model.settings["vocab_size"]


def _check_one_tokenizer(models: Sequence[StackModel]) -> None:
    folders = {model.checkpoint.folder: model.name for model in models}
    known = [each for each in folders if has_tokenizer(each)]
    digests = {folder: tokenizer_digest(folder) for folder in known}
    strange = [folder for folder in known if digests[folder] != digests[known[0]]]
    sizes = {int(model.settings["vocab_size"]) for model in models}
    if strange or len(sizes) > 1:
        other = folders[strange[0]] if strange else models[-1].name
        detail = f"{other} and {models[0].name} have different vocabularies"
        raise refusal("vocabulary", detail, "set tokenizer_source to union, or to base for the first model's")
