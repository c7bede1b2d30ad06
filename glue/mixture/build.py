"""Writing a mixture: experts' tensors stream into one checkpoint beside the router. Knows no search and no score.

The folder loads with transformers alone: config with `auto_map`, the modelling file, tokenizer, weights.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glue.checkpoints.companions import highest_token_id
from glue.checkpoints.dtypes import config_dtype, torch_dtype
from glue.checkpoints.parts import part_config, untied_tensors
from glue.checkpoints.reader import Checkpoint
from glue.checkpoints.shards import PlannedTensor
from glue.checkpoints.writer import Progress
from glue.mixture.companions import ends_of, write_companions, write_tokenizer
from glue.mixture.modeling_glue_model_mixture import GlueModelMixtureConfig
from glue.mixture.modelling import MODEL_LEVEL
from glue.mixture.router import RouterWeights, embedding_tensor
from glue.mixture.sources import ExpertSource, Streamed, opened_model
from glue.mixture.writing import Output, write_mixture
from glue.references.reading import refusal
from glue.references.signature import has_tokenizer, tokenizer_digest

__all__ = ["ExpertSource", "build_fused", "build_mixture"]

ROUTER, GATE = "sample_router", "token_gate"
# A folder of its own, and not below another: transformers uploads folders, but nothing deeper.
TOKENIZER = "tokenizer_{index}"


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
    base: ExpertSource | Path,
    tokenizer_folder: Path,
    *,
    top_k: int,
    dtype: str,
    shard_bytes: int,
    token: int,
    progress: Progress,
) -> dict[str, str]:
    """Write a model-level mixture into `out`, one tensor in memory at a time; a killed build goes on where it was.

    Experts are stored in `dtype` under `experts.<index>.`, heads untied; the router, with its copy of the input
    embedding of the `base`, in float32, so that routing does not depend on the dtype. An expert
    whose tokenizer is another than that of `tokenizer_folder` keeps its own below `tokenizer_<number>/`.
    Equal inputs give equal bytes, and every value is looked at on its way. The sha256 of each new shard is given back.

    Raises:
        IncompatibleModelsError: an input is not a complete causal language model of a stock architecture, its
            vocabulary is too small for its tokenizer, or experts of several tokenizers would have to be mixed.
        DiskFullError: there is no space; nothing that looks finished is left.
        ValueError: the router is not one for these experts and this embedding.
    """
    if not 1 <= top_k <= len(experts):
        raise ValueError(f"each sample can ask 1 to {len(experts)} experts, not {top_k}")
    with ExitStack() as stack:
        opened = _opened(experts, stack)
        embedding = _router_embedding(stack.enter_context(opened_model(base)))
        config = _config(experts, [each.config for each in opened], dtype)
        config.experts_per_token, config.router_inner_size = top_k, router.inner_size
        config.router_vocab_size, config.router_hidden_size = embedding.planned.shape
        weights = _router_tensors(router, len(experts), config.router_hidden_size)
        origins = [*_origins(experts, opened, dtype), embedding]
        output = Output(out, shard_bytes, token, progress)
        return _write(output, config, experts, origins, weights, tokenizer_folder)


def build_fused(
    out: Path,
    experts: Sequence[ExpertSource],
    tokenizer_folder: Path,
    *,
    dtype: str,
    shard_bytes: int,
    token: int,
    progress: Progress,
) -> dict[str, str]:
    """The same with a token gate over the experts' logits in place of a router. Until it learns it takes their mean.

    Raises:
        IncompatibleModelsError: as for `build_mixture`; all experts have to share one tokenizer.
        DiskFullError: there is no space; nothing that looks finished is left.
    """
    with ExitStack() as stack:
        opened = _opened(experts, stack)
        config = _config(experts, [each.config for each in opened], dtype)
        config.experts_per_token, config.token_gate = len(experts), True
        width = sum(each.get_text_config().hidden_size for each in config.expert_configs())
        weights = {
            f"{GATE}.weight": torch.zeros(len(experts), width),
            f"{GATE}.bias": torch.zeros(len(experts)),
        }
        output = Output(out, shard_bytes, token, progress)
        return _write(output, config, experts, _origins(experts, opened, dtype), weights, tokenizer_folder)


def _opened(experts: Sequence[ExpertSource], stack: ExitStack) -> list[Checkpoint]:
    return [stack.enter_context(expert.opened()) for expert in experts]


def _origins(experts: Sequence[ExpertSource], opened: Sequence[Checkpoint], dtype: str) -> list[_Origin]:
    named = zip((expert.name for expert in experts), opened, strict=True)
    return [origin for index, each in enumerate(named) for origin in _expert_origins(index, *each, dtype)]


def _write(
    output: Output,
    config: GlueModelMixtureConfig,
    experts: Sequence[ExpertSource],
    origins: Sequence[_Origin],
    weights: Mapping[str, Tensor],
    tokenizer_folder: Path,
) -> dict[str, str]:
    _give_tokenizers(config, experts, tokenizer_folder)
    _check_vocabularies(config, experts, tokenizer_folder)
    planned = [origin.planned for origin in origins]
    planned += [PlannedTensor(name, tuple(value.shape), value.dtype) for name, value in weights.items()]
    folders = [expert.folder for expert in experts]
    return write_mixture(
        output,
        planned,
        partial(_produce, {origin.planned.name: origin for origin in origins}, weights),
        partial(_write_companions, output.folder, config, folders, tokenizer_folder, output.token),
    )


def _write_companions(
    out: Path, config: GlueModelMixtureConfig, experts: Sequence[Path], tokenizer_folder: Path, token: int
) -> None:
    named = list(zip(config.tokenizer_folders(), experts, strict=True))
    # Reversed, as the first of those that share a tokenizer gives it.
    for name, folder in {name: folder for name, folder in reversed(named) if name}.items():
        write_tokenizer(folder, out / name, token)
    sharing = [folder for name, folder in named if not name]
    write_companions(out, MODEL_LEVEL, config, sharing, tokenizer_folder, token)


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


def _produce(origins: Mapping[str, _Origin], weights: Mapping[str, Tensor], name: str) -> Tensor | Streamed:
    return weights[name] if name in weights else Streamed.stored(origins[name].checkpoint, origins[name].tensor)


def _config(
    experts: Sequence[ExpertSource], configs: Sequence[Mapping[str, Any]], dtype: str
) -> GlueModelMixtureConfig:
    config = GlueModelMixtureConfig(
        experts=[part_config(config, dtype) for config in configs],
        expert_names=[expert.name for expert in experts],
        dtype=dtype,
    )
    own = config.expert_configs()
    config.vocab_size = max(expert.vocab_size for expert in own)
    config.num_hidden_layers = max(expert.num_hidden_layers for expert in own)
    return config


def _give_tokenizers(config: GlueModelMixtureConfig, experts: Sequence[ExpertSource], tokenizer_folder: Path) -> None:
    """Say which experts have a tokenizer of their own, where it will lie, and with which tokens they end."""
    shared = tokenizer_digest(tokenizer_folder)
    # A model without a tokenizer is one of the base's.
    digests = [tokenizer_digest(each.folder) if has_tokenizer(each.folder) else shared for each in experts]
    if all(digest == shared for digest in digests):
        return
    if config.experts_per_token > 1:
        names = [each.name for each, digest in zip(experts, digests, strict=True) if digest != shared]
        detail = f"{', '.join(names)} and the base have different tokenizers, so their probabilities cannot be mixed"
        raise refusal("tokenizer", detail, "let one expert answer a sample, or use experts with the base's tokenizer")
    config.expert_tokenizers = [
        None if digest == shared else TOKENIZER.format(index=digests.index(digest)) for digest in digests
    ]
    sizes = [config.router_vocab_size]
    for index, (name, settings) in enumerate(zip(config.tokenizer_folders(), config.experts or [], strict=True)):
        if name:
            settings["eos_token_id"] = ends_of(experts[index].folder) or None
        else:
            sizes.append(config.expert_configs()[index].vocab_size)
    config.vocab_size = max(sizes)


def _check_vocabularies(
    config: GlueModelMixtureConfig, experts: Sequence[ExpertSource], tokenizer_folder: Path
) -> None:
    parts = list(zip(experts, config.expert_configs(), config.tokenizer_folders(), strict=True))
    rows = [(each.name, own.vocab_size, each.folder if name else tokenizer_folder) for each, own, name in parts]
    if not config.token_gate:
        rows.append(("the router's embedding", config.router_vocab_size, tokenizer_folder))
    for name, size, folder in rows:
        highest = highest_token_id(folder) or 0
        if size <= highest:
            detail = f"the tokenizer gives ids up to {highest}, but {name} has {size} rows"
            raise refusal("vocabulary", detail, "use models whose embeddings have a row for every token")
