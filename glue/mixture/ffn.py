"""FFN level: each layer's MLP becomes the experts' MLPs behind a gate, in a stock architecture. Knows no prompts.

Everything but the MLPs comes from a base, or is the mean over the experts as in Branch-Train-MiX
(arXiv 2403.07816).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from glue.checkpoints.architecture import architecture_of, meta_model, stored_tensors
from glue.checkpoints.dtypes import config_dtype
from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.shards import PlannedTensor
from glue.checkpoints.writer import Progress
from glue.mixture.companions import write_stock_companions
from glue.mixture.stock import StockTarget, stock_target
from glue.mixture.writing import ExpertSource, Output, write_mixture
from glue.references.headers import TensorInfo
from glue.references.reading import refusal
from glue.references.signature import signature

Shape = tuple[int, ...]


class _Dense:
    """A complete dense model: its tensors by their full names, what was read from it noted."""

    def __init__(self, name: str, checkpoint: Checkpoint) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.config: PreTrainedConfig = meta_model(checkpoint.config).config
        architecture = architecture_of(checkpoint.config)
        stored = stored_tensors(architecture, checkpoint.tensors, name)
        self.tensors: dict[str, TensorInfo] = {architecture.canonical(key): info for key, info in stored.items()}
        self.signature = signature(checkpoint.config, self.tensors)

    def read(self, tensor: str) -> Tensor:
        return self.checkpoint.read(self.tensors[tensor].name)


def build_ffn_mixture(
    out: Path,
    experts: Sequence[ExpertSource],
    gates: Tensor,
    base: ExpertSource | None,
    tokenizer_folder: Path,
    *,
    top_k: int,
    dtype: str,
    shard_bytes: int,
    token: int,
    progress: Progress,
) -> None:
    """Write an FFN-level mixture into `out`, one tensor in memory at a time; a killed build goes on where it was.

    `gates` is layers x experts x hidden: the rows of each layer's router. Without `base`, everything but the
    MLPs is the experts' mean, in double precision. Equal inputs give equal bytes; the finished folder is read
    once more and verified.

    Raises:
        IncompatibleModelsError: the models are not of one signature, no stock architecture fits them, or one
            is incomplete.
        DiskFullError: there is no space; nothing that looks finished is left.
        ValueError: the gates have another shape, or there are fewer than `top_k` experts.
    """
    with ExitStack() as stack:
        dense = [_Dense(each.name, stack.enter_context(Checkpoint.open(each.folder))) for each in experts]
        trunk = [_Dense(base.name, stack.enter_context(Checkpoint.open(base.folder)))] if base else dense
        _check_alike([*trunk, *dense])
        target = stock_target(trunk[0].config)
        _check_numbers(gates, trunk[0].config, len(experts), top_k)
        config = target.config_for(trunk[0].config, len(experts), top_k, dtype)
        shapes = architecture_of(config.to_dict()).shapes
        produce = {name: _producer(name, shape, target, gates, dense, trunk) for name, shape in shapes.items()}
        _check_nothing_lost(target, shapes, trunk[0], dense[0])
        write_mixture(
            Output(out, shard_bytes, token, progress),
            [PlannedTensor(name, shape, config_dtype(dtype)) for name, shape in shapes.items()],
            lambda name: produce[name](),
            partial(write_stock_companions, out, config, tokenizer_folder, token),
        )


def _producer(
    name: str, shape: Shape, target: StockTarget, gates: Tensor, experts: Sequence[_Dense], trunk: Sequence[_Dense]
) -> Callable[[], Tensor]:
    """What gives the tensor of that name when its turn comes."""
    if gate := target.gate.fullmatch(name):
        return lambda: gates[int(gate["layer"])]
    if target.silent.fullmatch(name):
        return lambda: torch.zeros(shape)
    if source := _expert_tensor(target, name):
        expert, tensor = experts[source[0]], source[1]
        _check_shape(expert, tensor, shape)
        return lambda: expert.read(tensor)
    for model in trunk:
        _check_shape(model, name, shape)
    return lambda: _mean(name, trunk)


def _expert_tensor(target: StockTarget, name: str) -> tuple[int, str] | None:
    """Which expert's which tensor a stored name stands for; none where it is not an expert's."""
    found = target.expert.fullmatch(name)
    if found is None:
        return None
    return int(found["expert"]), f"model.layers.{found['layer']}.mlp.{target.parts[found['part']]}.weight"


def _mean(tensor: str, models: Sequence[_Dense]) -> Tensor:
    total = models[0].read(tensor).double()
    for model in models[1:]:
        total += model.read(tensor)
    return total / len(models)


def _check_alike(models: Sequence[_Dense]) -> None:
    first = models[0]
    for other in models[1:]:
        if other.signature != first.signature or other.config.hidden_act != first.config.hidden_act:
            detail = f"{other.name} and {first.name} differ in architecture, shapes, heads or positions"
            raise refusal("signature", detail, "FFN experts have to come from one architecture; or use level model")


def _check_numbers(gates: Tensor, config: PreTrainedConfig, experts: int, top_k: int) -> None:
    expected = (config.num_hidden_layers, experts, config.hidden_size)
    if tuple(gates.shape) != expected:
        raise ValueError(f"gates of shape {expected} are needed, these are {tuple(gates.shape)}")
    if not 1 <= top_k <= experts:
        raise ValueError(f"each token can ask 1 to {experts} experts, not {top_k}")


def _check_shape(model: _Dense, tensor: str, shape: Shape) -> None:
    found = model.tensors.get(tensor)
    if found is None or found.shape != shape:
        detail = f"{model.name} has {tensor} {f'of shape {found.shape}' if found else 'not at all'}, not {shape}"
        raise refusal("shape", detail, "all experts and the base have to have equal shapes")


def _check_nothing_lost(target: StockTarget, shapes: Mapping[str, Shape], trunk: _Dense, expert: _Dense) -> None:
    sources = [_expert_tensor(target, name) for name in shapes]
    used = {source[1] for source in sources if source} | set(shapes)
    lost = sorted((trunk.tensors.keys() | expert.tensors.keys()) - used)
    if lost:
        detail = f"{target.architecture} has no place for {lost[0]}"
        raise refusal("no_place", detail, "use experts without biases, or level model")
