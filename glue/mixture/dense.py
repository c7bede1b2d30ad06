"""Dense models as parts of a mixture: complete, comparable, with heads that can stand alone. Knows no router."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedConfig

from glue.checkpoints.architecture import meta_model
from glue.checkpoints.dtypes import torch_dtype
from glue.checkpoints.parts import own_tensors, untied_tensors
from glue.checkpoints.reader import Checkpoint
from glue.mixture.sources import UNCHANGED, Adjustment, Streamed
from glue.references.headers import TensorInfo, folder_tensors
from glue.references.reading import refusal
from glue.references.signature import signature

Shape = tuple[int, ...]


class DenseModel:
    """A complete dense model under its full tensor names; tied weights are left out, or repeated if `untied`.

    Raises:
        IncompatibleModelsError: it is not a complete causal language model of a stock architecture.
    """

    def __init__(
        self, name: str, checkpoint: Checkpoint, *, untied: bool = False, adjustment: Adjustment = UNCHANGED
    ) -> None:
        self.name = name
        self.adjustment = adjustment
        self.checkpoint = checkpoint
        self.config: PreTrainedConfig = meta_model(checkpoint.config).config
        sources = untied_tensors(name, checkpoint) if untied else own_tensors(name, checkpoint)
        self.tensors: dict[str, TensorInfo] = {target: checkpoint.info(source) for target, source in sources.items()}
        self.signature = signature(checkpoint.config, self.tensors)

    def read(self, tensor: str) -> Streamed:
        """The tensor of that full name, in its own dtype."""
        return Streamed.stored(self.checkpoint, self.tensors[tensor].name)

    def read_adjusted(self, tensor: str) -> Tensor | Streamed:
        """The same as it stands in an expert's MLP."""
        if self.adjustment.is_none:
            return self.read(tensor)
        return self.adjustment.of(tensor, self.checkpoint.read(self.tensors[tensor].name))

    def check_shape(self, tensor: str, shape: Shape) -> None:
        """Check that the tensor exists and has that shape.

        Raises:
            IncompatibleModelsError: it has not.
        """
        found = self.tensors.get(tensor)
        if found is None or found.shape != shape:
            detail = f"{self.name} has {tensor} {f'of shape {found.shape}' if found else 'not at all'}, not {shape}"
            raise refusal("shape", detail, "all experts and the base have to have equal shapes")


def check_alike(models: Sequence[DenseModel], level: str) -> None:
    """Check that layers and MLPs of one model mean the same in another.

    Raises:
        IncompatibleModelsError: they do not.
    """
    first = models[0]
    for other in models[1:]:
        acts = {getattr(model.config, "hidden_act", None) for model in (first, other)}
        if other.signature != first.signature or len(acts) > 1:
            detail = f"{other.name} and {first.name} differ in architecture, shapes, heads or positions"
            fix = f"experts of level {level} have to come from one architecture; or use level model"
            raise refusal("signature", detail, fix)


def mean_tensor(tensor: str, models: Sequence[DenseModel]) -> Streamed:
    """The mean over the models in double precision; of one model, its values."""
    sources = [model.read(tensor) for model in models]
    if len(sources) == 1:
        return sources[0]

    def mean(start: int, stop: int) -> Tensor:
        total = sources[0].read(start, stop).double()
        for source in sources[1:]:
            total += source.read(start, stop)
        return total / len(sources)

    return Streamed(sources[0].shape, mean)


def stored_dtype(folder: Path) -> str:
    """The dtype in which a model's floating-point tensors are stored, as a config names it; of several the widest.

    Raises:
        IncompatibleModelsError: the folder is not a safetensors model.
    """
    found = {torch_dtype(info.dtype) for info in folder_tensors(folder).values()}
    widest = max((each for each in found if each.is_floating_point), key=lambda each: each.itemsize)
    return str(widest).removeprefix("torch.")
