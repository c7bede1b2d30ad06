"""FFN level: each layer's MLP becomes the experts' MLPs behind a gate, in a stock architecture. Knows no prompts.

Everything but the MLPs comes from a base, or is the mean over the experts as in Branch-Train-MiX
(arXiv 2403.07816).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from glue.checkpoints.architecture import architecture_of
from glue.checkpoints.dtypes import config_dtype
from glue.checkpoints.shards import PlannedTensor
from glue.checkpoints.writer import Progress
from glue.mixture.companions import write_stock_companions
from glue.mixture.dense import DenseModel, Shape, check_alike, mean_tensor
from glue.mixture.layered import check_numbers
from glue.mixture.sources import NO_SHARED, ExpertSource, SharedExperts, Streamed
from glue.mixture.stock import StockTarget, Wanted, stock_target
from glue.mixture.writing import Output, write_mixture
from glue.references.reading import refusal


def fitting_target(
    trunk: ExpertSource, wanted: Wanted, among: Sequence[StockTarget] | None = None
) -> StockTarget | str:
    """The stock architecture for a mixture of models like this one, or why there is none.

    Raises:
        IncompatibleModelsError: it is not a complete causal language model of a stock architecture.
    """
    with trunk.opened() as checkpoint:
        model = DenseModel(trunk.name, checkpoint)
        return stock_target(model.config, model.tensors, wanted, among)


def build_ffn_mixture(
    out: Path,
    experts: Sequence[ExpertSource],
    gates: Tensor,
    base: ExpertSource | None,
    tokenizer_folder: Path,
    *,
    shared: SharedExperts = NO_SHARED,
    target: StockTarget | None = None,
    dense_layers: int = 0,
    top_k: int,
    dtype: str,
    shard_bytes: int,
    token: int,
    progress: Progress,
) -> dict[str, str]:
    """Write an FFN-level mixture into `out`, one tensor in memory at a time; a killed build goes on where it was.

    `gates` is layers x experts x hidden: the rows of each layer's router. The bottom `dense_layers` layers have no
    experts (hybrid), and their gates are left aside. Without `base`, everything but the
    MLPs is the experts' mean, in double precision. Without `target` the first stock architecture that fits is taken.
    Equal inputs give equal bytes, and every value is looked at on its way. The sha256 of each new shard is given back.

    Raises:
        IncompatibleModelsError: the models are not of one signature, no stock architecture fits them, or one is
            incomplete.
        DiskFullError: there is no space; nothing that looks finished is left.
        ValueError: the gates have another shape, or a number is out of range.
    """
    with ExitStack() as stack:
        dense = [_opened(stack, each) for each in experts]
        beside = [_opened(stack, each) for each in shared.sources]
        trunk = [_opened(stack, base)] if base else dense
        check_alike([*trunk, *dense, *beside], "ffn")
        settings = trunk[0].config
        _check_gates(gates, (settings.num_hidden_layers, len(experts), settings.hidden_size))
        check_numbers(len(experts), top_k, dense_layers, settings.num_hidden_layers, "token")
        wanted = Wanted(len(experts), top_k, dense_layers, len(beside), shared.gates is not None)
        chosen = stock_target(settings, trunk[0].tensors, wanted, None if target is None else (target,))
        if isinstance(chosen, str):
            raise refusal(
                "no_stock_mixture", chosen, "let glue mix choose how the mixture is stored, or use level model"
            )
        config = chosen.config_for(settings, wanted, dtype)
        shapes = architecture_of(config.to_dict()).shapes
        parts = _Parts(chosen, gates, shared.gates, dense, beside, trunk)
        produce = {name: parts.producer(name, shape) for name, shape in shapes.items()}
        return write_mixture(
            Output(out, shard_bytes, token, progress),
            [PlannedTensor(name, shape, config_dtype(dtype)) for name, shape in shapes.items()],
            lambda name: produce[name](),
            partial(write_stock_companions, out, config, tokenizer_folder, token),
        )


@dataclass(frozen=True)
class _Parts:
    """Where every tensor of a mixture comes from."""

    target: StockTarget
    gates: Tensor
    shared_gates: Tensor | None
    experts: Sequence[DenseModel]
    shared: Sequence[DenseModel]
    trunk: Sequence[DenseModel]

    def producer(self, name: str, shape: Shape) -> Callable[[], Tensor | Streamed]:
        """What gives the tensor of that name when its turn comes."""
        if gate := self.target.gate.fullmatch(name):
            choosing = self.gates[int(gate["layer"])]
            return lambda: choosing
        if self.shared_gates is not None and (weighing := self.target.shared_gate.fullmatch(name)):
            rows = self.shared_gates[int(weighing["layer"])]
            return lambda: rows
        if source := self.target.source(name):
            expert = self.target.expert.fullmatch(name)
            assert expert is not None, "only an expert's tensor has a source"
            return _adjusted(self.experts[int(expert["expert"])], source, shape)
        if self.shared and (found := self.target.shared.fullmatch(name)):
            part = self.target.parts[found["part"]]
            return _adjusted(self.shared[0], f"model.layers.{found['layer']}.mlp.{part}.weight", shape)
        if self.target.silent.fullmatch(name) and name not in self.trunk[0].tensors:
            return lambda: torch.zeros(shape)
        for model in self.trunk:
            model.check_shape(name, shape)
        return lambda: mean_tensor(name, self.trunk)


def _opened(stack: ExitStack, source: ExpertSource) -> DenseModel:
    return DenseModel(source.name, stack.enter_context(source.opened()), adjustment=source.adjustment)


def _adjusted(model: DenseModel, tensor: str, shape: Shape) -> Callable[[], Tensor | Streamed]:
    model.check_shape(tensor, shape)
    return lambda: model.read_adjusted(tensor)


def _check_gates(gates: Tensor, expected: tuple[int, int, int]) -> None:
    if tuple(gates.shape) != expected:
        raise ValueError(f"gates of shape {expected} are needed, these are {tuple(gates.shape)}")
