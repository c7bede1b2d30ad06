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

from glue.checkpoints.architecture import architecture_of
from glue.checkpoints.dtypes import config_dtype
from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.shards import PlannedTensor
from glue.checkpoints.writer import Progress
from glue.mixture.companions import write_stock_companions
from glue.mixture.dense import DenseModel, Shape, check_alike, mean_tensor
from glue.mixture.stock import StockTarget, stock_target
from glue.mixture.writing import ExpertSource, Output, write_mixture
from glue.references.reading import refusal


def build_ffn_mixture(
    out: Path,
    experts: Sequence[ExpertSource],
    gates: Tensor,
    base: ExpertSource | None,
    tokenizer_folder: Path,
    *,
    dense_layers: int = 0,
    top_k: int,
    dtype: str,
    shard_bytes: int,
    token: int,
    progress: Progress,
) -> None:
    """Write an FFN-level mixture into `out`, one tensor in memory at a time; a killed build goes on where it was.

    `gates` is layers x experts x hidden: the rows of each layer's router. The bottom `dense_layers` layers have no
    experts (hybrid), and their gates are left aside. Without `base`, everything but the
    MLPs is the experts' mean, in double precision. Equal inputs give equal bytes; the finished folder is read
    once more and verified.

    Raises:
        IncompatibleModelsError: the models are not of one signature, no stock architecture fits them or has
            dense layers, or one is incomplete.
        DiskFullError: there is no space; nothing that looks finished is left.
        ValueError: the gates have another shape, or there are fewer than `top_k` experts.
    """
    with ExitStack() as stack:
        dense = [DenseModel(each.name, stack.enter_context(Checkpoint.open(each.folder))) for each in experts]
        trunk = [DenseModel(base.name, stack.enter_context(Checkpoint.open(base.folder)))] if base else dense
        check_alike([*trunk, *dense], "ffn")
        target = stock_target(trunk[0].config)
        _check_numbers(gates, trunk[0].config, len(experts), top_k, dense_layers)
        config = target.config_for(trunk[0].config, len(experts), top_k, dense_layers, dtype)
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
    name: str,
    shape: Shape,
    target: StockTarget,
    gates: Tensor,
    experts: Sequence[DenseModel],
    trunk: Sequence[DenseModel],
) -> Callable[[], Tensor]:
    """What gives the tensor of that name when its turn comes."""
    if gate := target.gate.fullmatch(name):
        return lambda: gates[int(gate["layer"])]
    if target.silent.fullmatch(name):
        return lambda: torch.zeros(shape)
    if source := _expert_tensor(target, name):
        expert, tensor = experts[source[0]], source[1]
        expert.check_shape(tensor, shape)
        return lambda: expert.read(tensor)
    for model in trunk:
        model.check_shape(name, shape)
    return lambda: mean_tensor(name, trunk)


def _expert_tensor(target: StockTarget, name: str) -> tuple[int, str] | None:
    """Which expert's which tensor a stored name stands for; none where it is not an expert's."""
    found = target.expert.fullmatch(name)
    if found is None:
        return None
    return int(found["expert"]), f"model.layers.{found['layer']}.mlp.{target.parts[found['part']]}.weight"


def _check_numbers(gates: Tensor, config: PreTrainedConfig, experts: int, top_k: int, dense_layers: int) -> None:
    expected = (config.num_hidden_layers, experts, config.hidden_size)
    if tuple(gates.shape) != expected:
        raise ValueError(f"gates of shape {expected} are needed, these are {tuple(gates.shape)}")
    if not 1 <= top_k <= experts:
        raise ValueError(f"each token can ask 1 to {experts} experts, not {top_k}")
    if not 0 <= dense_layers < config.num_hidden_layers:
        raise ValueError(f"0 to {config.num_hidden_layers - 1} layers can be dense, not {dense_layers}")


def _check_nothing_lost(
    target: StockTarget, shapes: Mapping[str, Shape], trunk: DenseModel, expert: DenseModel
) -> None:
    sources = [_expert_tensor(target, name) for name in shapes]
    used = {source[1] for source in sources if source} | set(shapes)
    lost = sorted((trunk.tensors.keys() | expert.tensors.keys()) - used)
    if lost:
        detail = f"{target.architecture} has no place for {lost[0]}"
        raise refusal("no_place", detail, "use experts without biases, or level model")
