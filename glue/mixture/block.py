"""Block level: each decoder layer becomes the experts' layers behind a router that decides for samples.

Knows no prompts. Embedding, final norm, head and dense layers come from a base, or are the experts' mean.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from glue.checkpoints.architecture import meta_model
from glue.checkpoints.dtypes import config_dtype, torch_dtype
from glue.checkpoints.parts import part_config
from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.shards import PlannedTensor
from glue.checkpoints.writer import Progress
from glue.mixture.companions import write_companions
from glue.mixture.dense import DenseModel, check_alike, mean_tensor
from glue.mixture.modeling_glue_block_mixture import GlueBlockMixtureConfig, GlueBlockMixtureForCausalLM, layers_of
from glue.mixture.modelling import BLOCK_LEVEL
from glue.mixture.router import RouterWeights
from glue.mixture.writing import ExpertSource, Output, write_mixture
from glue.references.reading import refusal

Produce = dict[str, tuple[PlannedTensor, Callable[[], Tensor]]]


def build_block_mixture(
    out: Path,
    experts: Sequence[ExpertSource],
    router: RouterWeights,
    base: ExpertSource | None,
    tokenizer_folder: Path,
    *,
    dense_layers: int = 0,
    decide_once: bool = False,
    top_k: int,
    dtype: str,
    shard_bytes: int,
    token: int,
    progress: Progress,
) -> None:
    """Write a block-level mixture into `out`, one tensor in memory at a time; a killed build goes on where it was.

    The bottom `dense_layers` layers have no experts (hybrid). Each routed layer decides for itself, or with
    `decide_once` the first of them for all. `router` has a dimension of decisions first. Equal inputs give equal
    bytes; the finished folder is read once more and verified.

    Raises:
        IncompatibleModelsError: the models are not of one signature, or one is incomplete.
        DiskFullError: there is no space; nothing that looks finished is left.
        ValueError: the router has another shape, or a number is out of range.
    """
    with ExitStack() as stack:
        dense = [_opened(stack, each) for each in experts]
        trunk = [_opened(stack, base)] if base else dense
        check_alike([*trunk, *dense], "block")
        config = _config(experts, trunk[0], dtype, top_k, dense_layers, decide_once)
        config.router_inner_size = router.inner_size
        _check_router(router, config, trunk[0].config.hidden_size)
        produce = _expert_tensors(config, dense, trunk, dtype) | _router_tensors(config, router, trunk[0])
        _check_names(config, produce, trunk[0].name)
        folders = [expert.folder for expert in experts]
        write_mixture(
            Output(out, shard_bytes, token, progress),
            [planned for planned, _ in produce.values()],
            lambda name: produce[name][1](),
            partial(write_companions, out, BLOCK_LEVEL, config, folders, tokenizer_folder, token),
        )


def _opened(stack: ExitStack, source: ExpertSource) -> DenseModel:
    return DenseModel(source.name, stack.enter_context(Checkpoint.open(source.folder)), untied=True)


def _config(
    experts: Sequence[ExpertSource], trunk: DenseModel, dtype: str, top_k: int, dense_layers: int, decide_once: bool
) -> GlueBlockMixtureConfig:
    layers: int = trunk.config.num_hidden_layers
    if not 1 <= top_k <= len(experts):
        raise ValueError(f"each sample can ask 1 to {len(experts)} experts, not {top_k}")
    if not 0 <= dense_layers < layers:
        raise ValueError(f"0 to {layers - 1} of {layers} layers can be dense, not {dense_layers}")
    return GlueBlockMixtureConfig(
        trunk=part_config(trunk.checkpoint.config, dtype),
        expert_names=[expert.name for expert in experts],
        experts_per_token=top_k,
        dense_layers=dense_layers,
        decide_once=decide_once,
        vocab_size=trunk.config.vocab_size,
        num_hidden_layers=layers,
        dtype=dtype,
    )


def _check_router(router: RouterWeights, config: GlueBlockMixtureConfig, hidden: int) -> None:
    decisions = 1 if config.decide_once else config.num_hidden_layers - config.dense_layers
    experts = len(config.expert_names or [])
    if not router.has_shape(experts, hidden, (decisions,)):
        expected = (decisions, experts, router.inner_size or hidden)
        raise ValueError(f"a router of shape {expected} is needed, this is {tuple(router.weight.shape)}")


def _layer_list(model: DenseModel) -> str:
    return layers_of(meta_model(model.checkpoint.config), model.config.num_hidden_layers)[0]


def _expert_tensors(
    config: GlueBlockMixtureConfig, experts: Sequence[DenseModel], trunk: Sequence[DenseModel], dtype: str
) -> Produce:
    inside = re.compile(rf"{re.escape(_layer_list(trunk[0]))}\.(?P<layer>\d+)\.(?P<rest>.+)")
    produce: Produce = {}
    for name, info in trunk[0].tensors.items():
        own = torch_dtype(info.dtype)
        stored = config_dtype(dtype) if own.is_floating_point else own
        found = inside.fullmatch(name)
        if found is None or int(found["layer"]) < config.dense_layers:
            for model in trunk:
                model.check_shape(name, info.shape)
            target = PlannedTensor(f"trunk.{name}", info.shape, stored)
            produce[target.name] = (target, partial(mean_tensor, name, trunk))
            continue
        for index, expert in enumerate(experts):
            expert.check_shape(name, info.shape)
            place = name.removesuffix(found["rest"]) + f"experts.{index}.{found['rest']}"
            target = PlannedTensor(f"trunk.{place}", info.shape, stored)
            produce[target.name] = (target, partial(expert.read, name))
    return produce


def _router_tensors(config: GlueBlockMixtureConfig, router: RouterWeights, trunk: DenseModel) -> Produce:
    last = config.dense_layers + 1 if config.decide_once else config.num_hidden_layers
    produce: Produce = {}
    for layer in range(config.dense_layers, last):
        place = f"trunk.{_layer_list(trunk)}.{layer}.block_router"
        decision = config.decision_of(layer)
        for part, values in router.tensors("gate.weight").items():
            target = PlannedTensor(f"{place}.{part}", tuple(values.shape[1:]), torch.float32)
            produce[target.name] = (target, partial(Tensor.float, values[decision]))
    return produce


def _check_names(config: GlueBlockMixtureConfig, produce: Produce, model: str) -> None:
    with torch.device("meta"):
        model_on_meta = GlueBlockMixtureForCausalLM(config)
    stored = revert_weight_conversion(model_on_meta, model_on_meta.state_dict())
    expected = {name: tuple(value.shape) for name, value in stored.items()}
    if expected != {name: planned.shape for name, (planned, _) in produce.items()}:
        fix = "use level model, or experts that transformers stores as it runs them"
        raise refusal("block_layers", f"the layers of {model} cannot stand side by side", fix)
