"""The weights of a model in memory under the names that checkpoints give them. Knows no file.

Transformers keeps the experts of a layer in one tensor, and some architectures under names that their checkpoints do
not have. Whoever writes into what is returned here writes into the model.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glue.specs.errors import IncompatibleModelsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def resident_tensors(model: "PreTrainedModel") -> dict[str, Tensor]:
    """Every weight of the model as a view of its parameters, by the name that it has in a checkpoint.

    Raises:
        IncompatibleModelsError: a checkpoint's tensor lies in several places of the model.
    """
    from transformers.core_model_loading import revert_weight_conversion

    own = model.state_dict(keep_vars=False)
    named: dict[str, Tensor] = dict(revert_weight_conversion(model, own))
    places = {tensor.untyped_storage().data_ptr() for tensor in own.values()}
    copied = {name for name, tensor in named.items() if tensor.untyped_storage().data_ptr() not in places}
    for name in copied:
        del named[name]
    if copied:
        named |= _views(model, own, copied)
    return named


def _views(model: "PreTrainedModel", own: Mapping[str, Tensor], copied: set[str]) -> dict[str, Tensor]:
    """What the conversion copies, found again in the parameters by converting the numbers of their elements."""
    from transformers.core_model_loading import revert_weight_conversion

    views = {}
    for key, tensor in own.items():
        if copied.isdisjoint(revert_weight_conversion(model, {key: tensor.to("meta")})):
            continue
        numbers = torch.arange(tensor.numel()).view(tensor.shape)
        for name, elements in revert_weight_conversion(model, {key: numbers}).items():
            views[name] = _view(tensor, elements, name)
    if lost := copied - views.keys():
        raise _scattered(min(lost))
    return views


def _view(tensor: Tensor, elements: Tensor, name: str) -> Tensor:
    """The view of a contiguous tensor whose elements have these numbers."""
    first = elements[(0,) * elements.dim()]
    strides, expected = [], first
    for axis, length in enumerate(elements.shape):
        step = int(elements.select(axis, 1)[(0,) * (elements.dim() - 1)] - first) if length > 1 else 1
        steps = torch.arange(length).mul_(step)
        expected = expected + steps.view([-1 if each == axis else 1 for each in range(elements.dim())])
        strides.append(step)
    if not tensor.is_contiguous() or not torch.equal(expected, elements):
        raise _scattered(name)
    return tensor.as_strided(elements.shape, strides, tensor.storage_offset() + int(first))


def _scattered(name: str) -> IncompatibleModelsError:
    return IncompatibleModelsError(
        f"{name} of a checkpoint lies in several places of the model in memory, so it cannot be merged into; "
        "write the merge to a folder and load that"
    )
