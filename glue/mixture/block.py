"""Block level: each decoder layer becomes the experts' layers behind a router that decides for samples.

Knows no prompts. Embedding, final norm, head and dense layers come from a base, or are the experts' mean.
"""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from glue.checkpoints.parts import part_config
from glue.checkpoints.writer import Progress
from glue.mixture.companions import write_companions
from glue.mixture.dense import DenseModel, check_alike
from glue.mixture.layered import (
    check_names,
    check_numbers,
    check_router,
    expert_tensors,
    layer_list,
    opened,
    router_tensors,
)
from glue.mixture.modeling_glue_block_mixture import GlueBlockMixtureConfig, GlueBlockMixtureForCausalLM
from glue.mixture.modelling import BLOCK_LEVEL
from glue.mixture.router import RouterWeights
from glue.mixture.writing import ExpertSource, Output, write_mixture


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
) -> dict[str, str]:
    """Write a block-level mixture into `out`, one tensor in memory at a time; a killed build goes on where it was.

    The bottom `dense_layers` layers have no experts (hybrid). Each routed layer decides for itself, or with
    `decide_once` the first of them for all. `router` has a dimension of decisions first. Equal inputs give equal
    bytes, and every value is looked at on its way. The sha256 of each new shard is given back.

    Raises:
        IncompatibleModelsError: the models are not of one signature, or one is incomplete.
        DiskFullError: there is no space; nothing that looks finished is left.
        ValueError: the router has another shape, or a number is out of range.
    """
    with ExitStack() as stack:
        dense = [opened(stack, each) for each in experts]
        trunk = [opened(stack, base)] if base else dense
        check_alike([*trunk, *dense], "block")
        config = _config(experts, trunk[0], dtype, top_k, dense_layers, decide_once)
        config.router_inner_size = router.inner_size
        decisions = 1 if decide_once else config.num_hidden_layers - dense_layers
        check_router(router, decisions, len(experts), trunk[0].config.hidden_size)
        layers = layer_list(trunk[0])
        inside = re.compile(rf"{re.escape(layers)}\.(?P<layer>\d+)\.(?P<rest>.+)")
        produce = expert_tensors(inside, dense_layers, dense, trunk, dtype)
        produce |= router_tensors(_places(config, layers), router)
        check_names(GlueBlockMixtureForCausalLM, config, produce, trunk[0].name)
        folders = [expert.folder for expert in experts]
        return write_mixture(
            Output(out, shard_bytes, token, progress),
            [planned for planned, _ in produce.values()],
            lambda name: produce[name][1](),
            partial(write_companions, out, BLOCK_LEVEL, config, folders, tokenizer_folder, token),
        )


def _config(
    experts: Sequence[ExpertSource], trunk: DenseModel, dtype: str, top_k: int, dense_layers: int, decide_once: bool
) -> GlueBlockMixtureConfig:
    layers: int = trunk.config.num_hidden_layers
    check_numbers(len(experts), top_k, dense_layers, layers - 1, "sample")
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


def _places(config: GlueBlockMixtureConfig, layers: str) -> dict[str, int]:
    first = config.dense_layers
    last = first + 1 if config.decide_once else config.num_hidden_layers
    return {f"{layers}.{layer}.block_router": config.decision_of(layer) for layer in range(first, last)}
