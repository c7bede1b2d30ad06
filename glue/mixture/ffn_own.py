"""FFN level by our modelling file: where no stock architecture fits, or whole samples are routed. Knows no prompts.

Any architecture whose layers have an MLP that takes states alone; biases, dense layers, inner layers of routers and
shared experts that no gate weighs all have their place.
"""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from torch import Tensor

from glue.checkpoints.architecture import meta_model
from glue.checkpoints.dtypes import config_dtype
from glue.checkpoints.parts import part_config
from glue.checkpoints.shards import PlannedTensor
from glue.checkpoints.writer import Progress
from glue.mixture.companions import write_companions
from glue.mixture.dense import DenseModel, check_alike
from glue.mixture.layered import (
    Produce,
    check_names,
    check_numbers,
    check_router,
    expert_tensors,
    opened,
    router_tensors,
)
from glue.mixture.modeling_glue_ffn_mixture import (
    GlueFfnMixtureConfig,
    GlueFfnSampleMixtureConfig,
    layers_of,
    mlp_name,
)
from glue.mixture.modelling import FFN_LEVEL, FFN_LEVEL_SAMPLES
from glue.mixture.router import RouterWeights
from glue.mixture.sources import NO_SHARED, ExpertSource, SharedExperts
from glue.mixture.writing import Output, write_mixture
from glue.references.reading import refusal


def build_own_ffn_mixture(
    out: Path,
    experts: Sequence[ExpertSource],
    router: RouterWeights,
    base: ExpertSource | None,
    tokenizer_folder: Path,
    *,
    routes_samples: bool = False,
    shared: SharedExperts = NO_SHARED,
    dense_layers: int = 0,
    top_k: int,
    dtype: str,
    shard_bytes: int,
    token: int,
    progress: Progress,
) -> dict[str, str]:
    """Write an FFN-level mixture into `out`, one tensor in memory at a time; a killed build goes on where it was.

    `router` has a dimension of decisions first, one for each layer with experts: the bottom `dense_layers` have
    none (hybrid). Without `base`, everything but the MLPs is the experts' mean, in double precision. Equal inputs
    give equal bytes, and every value is looked at on its way. The sha256 of each new shard is given back.

    Raises:
        IncompatibleModelsError: the models are not of one signature, one is incomplete, or their layers have no MLP
            that can stand alone.
        DiskFullError: there is no space; nothing that looks finished is left.
        ValueError: the router has another shape, or a number is out of range.
    """
    modelling = FFN_LEVEL_SAMPLES if routes_samples else FFN_LEVEL
    with ExitStack() as stack:
        dense = [opened(stack, each) for each in experts]
        beside = [opened(stack, each) for each in shared.sources]
        trunk = [opened(stack, base)] if base else dense
        check_alike([*trunk, *dense, *beside], "ffn")
        layers = trunk[0].config.num_hidden_layers
        check_numbers(len(experts), top_k, dense_layers, layers, "sample" if routes_samples else "token")
        check_router(router, layers - dense_layers, len(experts), trunk[0].config.hidden_size)
        kind = GlueFfnSampleMixtureConfig if routes_samples else GlueFfnMixtureConfig
        config = kind(
            trunk=part_config(trunk[0].checkpoint.config, dtype),
            expert_names=[expert.name for expert in experts],
            experts_per_token=top_k,
            dense_layers=dense_layers,
            router_inner_size=router.inner_size,
            shared_experts=len(beside),
            shared_experts_are_gated=shared.gates is not None,
            vocab_size=trunk[0].config.vocab_size,
            num_hidden_layers=layers,
            dtype=dtype,
        )
        for model in (*dense, *beside):
            model.adjustment.check_names(list(model.tensors), model.name)
        produce = _tensors(config, router, dense, beside, trunk, shared.gates)
        check_names(modelling.model, config, produce, trunk[0].name)
        folders = [expert.folder for expert in experts]
        return write_mixture(
            Output(out, shard_bytes, token, progress),
            [planned for planned, _ in produce.values()],
            lambda name: produce[name][1](),
            partial(write_companions, out, modelling, config, folders, tokenizer_folder, token),
        )


def _tensors(
    config: GlueFfnMixtureConfig,
    router: RouterWeights,
    experts: Sequence[DenseModel],
    shared: Sequence[DenseModel],
    trunk: Sequence[DenseModel],
    shared_gates: Tensor | None,
) -> Produce:
    mlp = _mlp_pattern(trunk[0])
    dtype = str(config.dtype).removeprefix("torch.")
    inside = re.compile(rf"{mlp}\.(?P<rest>.+)")
    produce = expert_tensors(inside, config.dense_layers, experts, trunk, dtype)
    for name, (planned, _) in list(produce.items()):
        first = re.fullmatch(rf"(?P<place>trunk\.{mlp})\.experts\.0\.(?P<rest>.+)", name)
        for index, model in enumerate(shared if first else ()):
            assert first is not None, "only of an expert's tensor"
            tensor = f"{first['place'].removeprefix('trunk.')}.{first['rest']}"
            model.check_shape(tensor, planned.shape)
            target = PlannedTensor(
                f"{first['place']}.shared_experts.{index}.{first['rest']}", planned.shape, planned.dtype
            )
            produce[target.name] = (target, partial(model.read_adjusted, tensor))
    return produce | _gates(config, router, trunk[0], shared_gates)


def _gates(
    config: GlueFfnMixtureConfig, router: RouterWeights, trunk: DenseModel, shared_gates: Tensor | None
) -> Produce:
    layers, mlp = _layers_and_mlp(trunk)
    routed = range(config.dense_layers, config.num_hidden_layers)
    places = {f"{layers}.{layer}.{mlp}": layer for layer in routed}
    produce = router_tensors(
        {f"{place}.ffn_router": layer - config.dense_layers for place, layer in places.items()}, router
    )
    if shared_gates is not None:
        dtype = config_dtype(str(config.dtype).removeprefix("torch."))
        for place, layer in places.items():
            gate = shared_gates[layer]
            target = PlannedTensor(f"trunk.{place}.shared_gate.weight", tuple(gate.shape), dtype)
            produce[target.name] = (target, partial(Tensor.float, gate))
    return produce


def _mlp_pattern(model: DenseModel) -> str:
    layers, mlp = _layers_and_mlp(model)
    return rf"{re.escape(layers)}\.(?P<layer>\d+)\.{mlp}"


def _layers_and_mlp(model: DenseModel) -> tuple[str, str]:
    """The names of the list of layers and, inside each, of the MLP."""
    name, layers = layers_of(meta_model(model.checkpoint.config), model.config.num_hidden_layers)
    try:
        names = {mlp_name(layer) for layer in layers}
    except ValueError as error:
        raise refusal("no_mlp", f"{model.name}: {error}", "use level block or model") from None
    return name, names.pop()
