"""Writing a mixture: experts' tensors stream into one checkpoint beside the router. Knows no search and no score.

The folder loads with transformers alone: config with `auto_map`, the modelling file, tokenizer, weights.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from glue.checkpoints.companions import highest_token_id
from glue.checkpoints.dtypes import config_dtype, torch_dtype
from glue.checkpoints.parts import part_config, untied_tensors
from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.shards import PlannedTensor
from glue.checkpoints.writer import Progress
from glue.mixture.companions import write_companions
from glue.mixture.modeling_glue_model_mixture import GlueModelMixtureConfig
from glue.mixture.modelling import MODEL_LEVEL
from glue.mixture.router import RouterWeights, embedding_tensor
from glue.mixture.writing import ExpertSource, Output, write_mixture
from glue.references.reading import refusal

__all__ = ["ExpertSource", "build_mixture"]

ROUTER = "sample_router"


@dataclass(frozen=True)
class _Origin:
    """Where a tensor of the mixture comes from, and how it is stored."""

    checkpoint: Checkpoint
    tensor: str
    planned: PlannedTensor


def build_mixture(
    out: Path,
    experts: Sequence[ExpertSource],
    router: RouterWeights,
    embedding_folder: Path,
    tokenizer_folder: Path,
    *,
    top_k: int,
    dtype: str,
    shard_bytes: int,
    token: int,
    progress: Progress,
) -> None:
    """Write a model-level mixture into `out`, one tensor in memory at a time; a killed build goes on where it was.

    Experts are stored in `dtype` under `experts.<index>.`, heads untied; the router, with its copy of the input
    embedding of the model in `embedding_folder`, in float32, so that routing does not depend on the dtype.
    Equal inputs give equal bytes. The finished folder is read once more and verified.

    Raises:
        IncompatibleModelsError: an input is not a complete causal language model of a stock architecture, or
            its vocabulary is too small for the tokenizer.
        DiskFullError: there is no space; nothing that looks finished is left.
        ValueError: the router is not one for these experts and this embedding.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(Checkpoint.open(expert.folder)) for expert in experts]
        embedding = stack.enter_context(Checkpoint.open(embedding_folder))
        named = zip((expert.name for expert in experts), opened, strict=True)
        origins = [origin for index, each in enumerate(named) for origin in _expert_origins(index, *each, dtype)]
        origins.append(_router_embedding(embedding))
        config = _config(experts, [each.config for each in opened], origins[-1], dtype, top_k)
        config.router_inner_size = router.inner_size
        weights = _router_tensors(router, len(experts), config.router_hidden_size)
        _check_vocabularies(config, experts, tokenizer_folder)
        planned = [origin.planned for origin in origins]
        planned += [PlannedTensor(name, tuple(value.shape), value.dtype) for name, value in weights.items()]
        folders = [expert.folder for expert in experts]
        write_mixture(
            Output(out, shard_bytes, token, progress),
            planned,
            partial(_produce, {origin.planned.name: origin for origin in origins}, weights),
            partial(write_companions, out, MODEL_LEVEL, config, folders, tokenizer_folder, token),
        )


def _expert_origins(index: int, name: str, checkpoint: Checkpoint, dtype: str) -> list[_Origin]:
    sources = untied_tensors(name, checkpoint)
    return [_origin(f"experts.{index}.{target}", checkpoint, source, dtype) for target, source in sources.items()]


def _origin(name: str, checkpoint: Checkpoint, source: str, dtype: str) -> _Origin:
    info = checkpoint.info(source)
    own = torch_dtype(info.dtype)
    stored = config_dtype(dtype) if own.is_floating_point else own
    return _Origin(checkpoint, source, PlannedTensor(name, info.shape, stored))


def _router_embedding(checkpoint: Checkpoint) -> _Origin:
    return _origin(f"{ROUTER}.embedding", checkpoint, embedding_tensor(checkpoint), "float32")


def _router_tensors(router: RouterWeights, experts: int, hidden: int) -> dict[str, Tensor]:
    if not router.has_shape(experts, hidden):
        raise ValueError(
            f"{experts} experts over an embedding of width {hidden} need a router of that shape, "
            f"not {tuple(router.weight.shape)} and {tuple(router.centre.shape)}"
        )
    return {f"{ROUTER}.{name}": value.float() for name, value in router.tensors("weight").items()}


def _produce(origins: Mapping[str, _Origin], weights: Mapping[str, Tensor], name: str) -> Tensor:
    return weights[name] if name in weights else origins[name].checkpoint.read(origins[name].tensor)


def _config(
    experts: Sequence[ExpertSource],
    configs: Sequence[Mapping[str, Any]],
    embedding: _Origin,
    dtype: str,
    top_k: int,
) -> GlueModelMixtureConfig:
    if not 1 <= top_k <= len(experts):
        raise ValueError(f"each sample can ask 1 to {len(experts)} experts, not {top_k}")
    rows, hidden = embedding.planned.shape
    config = GlueModelMixtureConfig(
        experts=[part_config(config, dtype) for config in configs],
        expert_names=[expert.name for expert in experts],
        experts_per_token=top_k,
        router_vocab_size=rows,
        router_hidden_size=hidden,
        dtype=dtype,
    )
    own = config.expert_configs()
    config.vocab_size = max(expert.vocab_size for expert in own)
    config.num_hidden_layers = max(expert.num_hidden_layers for expert in own)
    return config


def _check_vocabularies(
    config: GlueModelMixtureConfig, experts: Sequence[ExpertSource], tokenizer_folder: Path
) -> None:
    highest = highest_token_id(tokenizer_folder) or 0
    sizes = {expert.name: own.vocab_size for expert, own in zip(experts, config.expert_configs(), strict=True)}
    sizes["the router's embedding"] = config.router_vocab_size
    small = [name for name, rows in sizes.items() if rows <= highest]
    if small:
        detail = f"the tokenizer gives ids up to {highest}, but {small[0]} has {sizes[small[0]]} rows"
        raise refusal("vocabulary", detail, "all experts and the base have to share the tokenizer")
