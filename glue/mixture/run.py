"""A mixture file run from end to end: routers found, result built beside its place, moved there when it is whole."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from glue.checkpoints.architecture import meta_model
from glue.checkpoints.disk import TOKEN, give_name, work_folder
from glue.checkpoints.dtypes import config_dtype, dtype_name
from glue.checkpoints.manifest import file_sha256, write_manifest
from glue.checkpoints.writer import Progress
from glue.merging.engine import merge_into
from glue.merging.merged_checkpoint import Locate, open_source
from glue.merging.mergekit_yaml import ModelReference
from glue.merging.model_source import ModelSource
from glue.merging.run import model_folders
from glue.mixture.block import build_block_mixture
from glue.mixture.build import build_fused, build_mixture
from glue.mixture.dense import stored_dtype
from glue.mixture.ffn import build_ffn_mixture
from glue.mixture.ffn_level import shared_are_gated, stored_as
from glue.mixture.ffn_own import build_own_ffn_mixture
from glue.mixture.found_texts import access_of_environment, find_texts
from glue.mixture.gates import (
    ExpertPrompts,
    GateMode,
    check_prompts,
    degenerate_layers,
    prompt_gates,
    random_gates,
    uniform_gates,
)
from glue.mixture.language_training import LanguageTraining
from glue.mixture.load import empty_model, load_model
from glue.mixture.mix_yaml import MixExpert, MixFile, read_mix_file
from glue.mixture.router import (
    RouterWeights,
    embedding_of,
    layer_prototypes,
    mlp_states,
    pool_features,
    pool_layer_states,
    pool_mlp_states,
    prototypes,
)
from glue.mixture.sources import Adjustment, ExpertSource, SharedExperts
from glue.mixture.trained import train_mixture
from glue.mixture.training import (
    RouterTraining,
    train_layer_routers,
    train_router,
    untrained_layer_routers,
    untrained_router,
)
from glue.mixture.training_text import read_examples
from glue.mixture.writing import Output
from glue.references.folders import folder_commit, read_config
from glue.references.signature import has_tokenizer, tokenizer_digest
from glue.specs.digests import digest_of
from glue.specs.errors import IncompatibleModelsError, InvalidInputError, Problem
from glue.specs.expression import Member

DEFAULT_SEED = 0

# Texts whose mean is the centre of routers that begin without prompts.
_FIRST_TEXTS = 64
# Where routers learn from text, the part of the progress before that.
_BUILDING = 0.3


_Find = Callable[[ModelSource, str], ExpertSource]


@dataclass(frozen=True)
class _Mix:
    """A mixture file with everything that it names found."""

    file: MixFile
    base: ExpertSource
    experts: tuple[ExpertSource, ...]
    shared: tuple[ExpertSource, ...]
    dtype: str
    seed: int
    texts: tuple[Path, ...]
    device: str

    @property
    def trunk(self) -> ExpertSource | None:
        return self.base if self.file.trunk == "base" else None

    @property
    def prompts(self) -> tuple[ExpertPrompts, ...]:
        return tuple(ExpertPrompts(each.positive_prompts, each.negative_prompts) for each in self.file.experts)

    @property
    def shared_prompts(self) -> tuple[ExpertPrompts, ...]:
        return tuple(ExpertPrompts(each.positive_prompts, each.negative_prompts) for each in self.file.shared_experts)

    @property
    def begins_without_prompts(self) -> bool:
        """Whether text alone says what the experts are for."""
        return bool(self.texts) and not any(each.positive_prompts for each in self.file.experts)

    @property
    def inner_size(self) -> int:
        chosen = self.file.router.training
        return chosen.hidden if chosen and self.file.router.type == "mlp" else 0

    def training(self) -> RouterTraining | None:
        """How routers learn from prompts; none where prototypes make them."""
        chosen = self.file.router.training
        if chosen is None or (self.texts and not self.inner_size):
            return None
        if self.texts:
            return RouterTraining(self.inner_size, seed=self.seed)
        return RouterTraining(self.inner_size, chosen.steps, chosen.rate, self.seed)

    def language_training(self) -> LanguageTraining:
        """How routers learn from text."""
        chosen = self.file.router.train
        assert chosen is not None, "who names texts says how to train"
        return LanguageTraining(
            steps=chosen.steps,
            learning_rate=chosen.rate,
            batch=chosen.batch,
            accumulate=chosen.accumulate,
            schedule=chosen.schedule,
            warmup=chosen.warmup,
            balance=chosen.balance,
            autocast=chosen.precision == "bfloat16",
            save_every=chosen.save_every,
            seed=self.seed,
        )

    @property
    def length(self) -> int:
        """At most so many tokens of a text."""
        return self.file.router.train.length if self.file.router.train else 0

    def layers_and_hidden(self) -> tuple[int, int]:
        config = meta_model(read_config(self.base.folder)).config
        return config.num_hidden_layers, config.hidden_size

    def tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.base.folder, trust_remote_code=False)
        return tokenizer

    def base_model(self) -> PreTrainedModel:
        checkpoint = self.base.checkpoint
        if checkpoint is None:
            return load_model(self.base.folder, config_dtype(stored_dtype(self.base.folder)), "cpu")
        model = empty_model(checkpoint.config, self.base.folder, torch.float32, "cpu")
        merge_into(Member(name=self.base.name), {self.base.name: checkpoint}, model)
        return model


def mix_file(
    path: Path, out: Path, *, shard_bytes: int, seed: int | None, progress: Progress, device: str = "cpu"
) -> tuple[str, ...]:
    """Run the mixture file at `path` into the folder `out`, which must not exist yet; gives notes for the user.

    A run that was killed goes on at its first missing shard, or at the last saved step of its training, when it is
    started again with the same inputs. The seed of the file, then `seed`, then 0 decides what is random. Routers
    that learn from text do so on `device`.

    Raises:
        InvalidInputError: the file is wrong, a model is not a folder, or `out` exists.
        IncompatibleModelsError: the models do not fit together, or the result would not be finite.
        DiskFullError: there is no space; `out` is not there.
    """
    file = read_mix_file(path)
    if out.exists():
        raise _invalid("/out", f"{out} exists already", "remove it, or choose another folder")

    def locate(reference: ModelReference) -> tuple[Path, ...]:
        return model_folders(reference, path.parent)

    names = [_name(expert.source_model, locate, index) for index, expert in enumerate(file.experts)]
    texts = _texts_of(file, path.parent, progress)
    inputs = [inputs_digest(file, locate, names, shard_bytes, seed), *map(file_sha256, texts), device if texts else ""]
    work = work_folder(out, digest_of(inputs))
    notes = write_mix(
        file,
        locate,
        work,
        names=names,
        shard_bytes=shard_bytes,
        seed=seed,
        token=TOKEN,
        progress=progress,
        texts=texts,
        device=device,
    )
    give_name(work, out)
    return notes


def write_mix(
    file: MixFile,
    locate: Locate,
    out: Path,
    *,
    names: Sequence[str],
    shard_bytes: int,
    seed: int | None,
    token: int,
    progress: Progress,
    texts: Sequence[Path] = (),
    device: str = "cpu",
) -> tuple[str, ...]:
    """Build a mixture in the folder `out` itself, where an earlier run may have left shards; gives notes for the user.

    `locate` finds the folders of what the file names; `names` are what the experts are called, in the file's order.
    `texts` are the files that its routers learn from, on `device`. The folder is verified and complete with its
    manifest.

    Raises:
        InvalidInputError: a folder or a number is wrong.
        IncompatibleModelsError: the models do not fit together, or the result would not be finite.
        DiskFullError: there is no space; nothing that looks finished is left.
    """
    if file.texts and not texts:
        raise _invalid("/router/train/data", "there is no text to train routers on here", "mix with glue mix")
    with ExitStack() as resources:
        mix = _found(file, partial(_source, resources, locate), names, seed, tuple(texts), device)
        _check_dense_layers(mix)
        output = Output(out, shard_bytes, token, progress)
        notes = (*_tokenizer_note(mix), *_built(mix, output))
    # What routers have learned since then changed their shards.
    write_manifest(out, token, {} if mix.texts else output.digests)
    return notes


def _built(mix: _Mix, output: Output) -> tuple[str, ...]:
    build = _LEVELS[mix.file.level]
    if not mix.texts:
        return build(mix, output)
    notes = build(mix, output.part(0.0, _BUILDING))
    learned = train_mixture(
        output.part(_BUILDING, 1.0),
        mix.texts,
        mix.language_training(),
        tokenizer=mix.tokenizer(),
        experts=[expert.name for expert in mix.experts],
        length=mix.length,
        device=mix.device,
    )
    return (*notes, *learned)


def _texts_of(file: MixFile, relative_to: Path, progress: Progress) -> tuple[Path, ...]:
    train = file.router.train
    if train is None or not train.data:
        return ()
    access = access_of_environment()
    return find_texts(train.data, train.split, train.subset, relative_to, access, lambda _, line: progress(0.0, line))


def inputs_digest(file: MixFile, locate: Locate, names: Sequence[str], shard_bytes: int, seed: int | None) -> str:
    """What two runs that write the same bytes have in common.

    Raises:
        InvalidInputError: a model is not a folder.
    """
    return digest_of(
        {
            "file": file.as_json(),
            "models": [[folder_commit(folder) for folder in locate(each)] for each in file.references()],
            "names": list(names),
            "shard_bytes": shard_bytes,
            "seed": _seed(file, seed),
        }
    )


def _found(
    file: MixFile, find: _Find, names: Sequence[str], seed: int | None, texts: tuple[Path, ...], device: str
) -> _Mix:
    base, own_seed = find(file.base_model, "base"), _seed(file, seed)
    named = zip(file.experts, names, strict=True)
    experts = tuple(
        _changed(find(expert.source_model, name), expert, f"{own_seed}/{index}")
        for index, (expert, name) in enumerate(named)
    )
    shared = tuple(
        _changed(find(expert.source_model, f"shared-{index}"), expert, f"{own_seed}/shared/{index}")
        for index, expert in enumerate(file.shared_experts)
    )
    dtype = file.dtype or _stored_dtype(base)
    return _Mix(file, base, experts, shared, dtype, own_seed, texts, device)


def _changed(source: ExpertSource, expert: MixExpert, seed: str) -> ExpertSource:
    if not expert.is_changed:
        return source
    scale = 1.0 if expert.residual_scale is None else expert.residual_scale
    return replace(source, adjustment=Adjustment(expert.noise_scale or 0.0, scale, seed))


def _seed(file: MixFile, seed: int | None) -> int:
    return next((each for each in (file.seed, seed) if each is not None), DEFAULT_SEED)


def _check_dense_layers(mix: _Mix) -> None:
    layers, _ = mix.layers_and_hidden()
    # A hybrid of MLPs can be dense throughout; one of layers is then no mixture.
    most = layers if mix.file.level == "ffn" else layers - 1
    if mix.file.dense_layers > most:
        raise _invalid("/dense_layers", f"there are {layers} layers", f"set dense_layers to at most {most}")


def _tokenizer_note(mix: _Mix) -> tuple[str, ...]:
    """A word about experts that read other ids than the base; an error where a text's loss is needed of them all."""
    own = tokenizer_digest(mix.base.folder)
    others = [
        expert.name for expert in mix.experts if has_tokenizer(expert.folder) and tokenizer_digest(expert.folder) != own
    ]
    if not others:
        return ()
    detail = f"{', '.join(others)} and the base have different tokenizers"
    if mix.file.level != "model" or mix.file.dense_layers:
        return (f"{detail}: the mixture reads the base's ids",)
    if mix.texts:
        detail += ", so that no text has one loss that a router could learn from"
        fix = "train the router on prompts, or use experts with the base's tokenizer"
        raise IncompatibleModelsError(f"{detail}; {fix}", [Problem("/router/train/data", "tokenizer", detail, fix)])
    return (f"{detail}: they keep their own, and answer in generate alone, not in forward",)


def _source(resources: ExitStack, locate: Locate, source: ModelSource, name: str) -> ExpertSource:
    # A folder that is an adapter itself stands for the model under it and the adapter.
    if source.reference is not None and len(locate(source.reference)) == 1:
        return ExpertSource(name, locate(source.reference)[0])
    checkpoint = resources.enter_context(open_source(source, locate))
    return ExpertSource(name, checkpoint.folder, checkpoint)


def _name(source: ModelSource, locate: Locate, index: int) -> str:
    """What an expert is called: like its adapter, else its folder; a merge has no name."""
    return f"merge-{index}" if source.reference is None else locate(source.reference)[-1].name


def _stored_dtype(source: ExpertSource) -> str:
    """The dtype in which a model is stored, or a merge would be."""
    if source.checkpoint is None:
        return stored_dtype(source.folder)
    return dtype_name(source.checkpoint.config)


def _ffn(mix: _Mix, output: Output) -> tuple[str, ...]:
    target = stored_as(mix.file, mix.experts[0])
    if isinstance(target, str):
        return _own_ffn(mix, output, target)
    gates, shared = _gates(mix)
    written = build_ffn_mixture(
        output.folder,
        mix.experts,
        gates,
        mix.trunk,
        mix.base.folder,
        shared=shared,
        target=target,
        dense_layers=mix.file.dense_layers,
        top_k=mix.file.top_k,
        dtype=mix.dtype,
        shard_bytes=output.shard_bytes,
        token=output.token,
        progress=output.progress,
    )
    output.digests.update(written)
    return () if mix.texts else _degenerate_note(gates)


def _own_ffn(mix: _Mix, output: Output, reason: str) -> tuple[str, ...]:
    first, (layers, hidden) = mix.file.dense_layers, mix.layers_and_hidden()
    gates, shared = None, SharedExperts(mix.shared)
    told: tuple[str, ...] = ()
    if mix.file.draws_gates or not _pools(mix.file):
        gates, shared = _gates(mix)
        router = RouterWeights(gates[first:], torch.zeros(len(gates) - first, hidden))
    elif first == layers:
        router = RouterWeights(torch.empty(0, len(mix.experts), hidden), torch.empty(0, hidden))
    else:
        model, samples = mix.base_model(), mix.file.routes_samples
        read = pool_mlp_states if samples else lambda dense, ids: mlp_states(dense, ids)[0]
        router = _first_router(mix, lambda ids: read(model, ids)[:, first:], _IN_LAYERS)
        if shared_are_gated(mix.file, mix.experts[0]):
            shared = SharedExperts(mix.shared, _prompt_gates(mix, mix.shared_prompts))
    written = build_own_ffn_mixture(
        output.folder,
        mix.experts,
        router,
        mix.trunk,
        mix.base.folder,
        routes_samples=mix.file.routes_samples,
        shared=shared,
        dense_layers=first,
        top_k=mix.file.top_k,
        dtype=mix.dtype,
        shard_bytes=output.shard_bytes,
        token=output.token,
        progress=output.progress,
    )
    output.digests.update(written)
    if not mix.texts:
        told = _silent_note(mix, router) if gates is None else _degenerate_note(gates)
    return (*told, f"stored with a modelling file of its own, as {reason}")


def _pools(file: MixFile) -> bool:
    """Whether routers come from what enters the MLPs, and not from mergekit's gate vectors."""
    return file.routes_samples or file.router.type == "mlp" or (file.router.train is not None and not file.texts)


def _gates(mix: _Mix) -> tuple[Tensor, SharedExperts]:
    """Gate vectors of the experts, layers x experts x hidden, and the shared experts with theirs."""
    layers, hidden = mix.layers_and_hidden()
    count, gated = len(mix.experts), shared_are_gated(mix.file, mix.experts[0])
    if mix.file.draws_gates:
        found = _drawn(mix, layers, hidden, count + len(mix.shared))
    elif mix.begins_without_prompts:
        found = uniform_gates(layers, count + len(mix.shared), hidden, mix.seed)
    else:
        found = _prompt_gates(mix, (*mix.prompts, *(mix.shared_prompts if gated else ())))
    return found[:, :count], SharedExperts(mix.shared, found[:, count:] if gated else None)


def _prompt_gates(mix: _Mix, prompts: Sequence[ExpertPrompts]) -> Tensor:
    mode = "hidden" if mix.file.gate_mode == "hidden_last" else mix.file.gate_mode
    return prompt_gates(mix.base_model(), mix.tokenizer(), prompts, cast(GateMode, mode))


def _drawn(mix: _Mix, layers: int, hidden: int, count: int | None = None) -> Tensor:
    draw = random_gates if mix.file.gate_mode == "random" else uniform_gates
    return draw(layers, count or len(mix.experts), hidden, mix.seed)


def _block(mix: _Mix, output: Output, *, decide_once: bool = False) -> tuple[str, ...]:
    first, (layers, hidden) = mix.file.dense_layers, mix.layers_and_hidden()
    decided = slice(first, first + 1 if decide_once else layers)
    if mix.file.draws_gates:
        gates = _drawn(mix, layers, hidden)[decided]
        router = RouterWeights(gates, torch.zeros(len(gates), hidden))
    else:
        model = mix.base_model()
        router = _first_router(mix, lambda ids: pool_layer_states(model, ids)[:, decided], _IN_LAYERS)
    written = build_block_mixture(
        output.folder,
        mix.experts,
        router,
        mix.trunk,
        mix.base.folder,
        dense_layers=first,
        decide_once=decide_once,
        top_k=mix.file.top_k,
        dtype=mix.dtype,
        shard_bytes=output.shard_bytes,
        token=output.token,
        progress=output.progress,
    )
    output.digests.update(written)
    return _silent_note(mix, router)


def _model(mix: _Mix, output: Output) -> tuple[str, ...]:
    if mix.file.dense_layers:
        return _block(mix, output, decide_once=True)
    if mix.file.fuses:
        return _fused(mix, output)
    embedding = embedding_of(mix.base)
    if mix.file.draws_gates:
        hidden = embedding.shape[1]
        router = RouterWeights(_drawn(mix, 1, hidden)[0], torch.zeros(hidden))
    else:
        router = _first_router(mix, partial(pool_features, embedding), _OF_MODELS)
    written = build_mixture(
        output.folder,
        mix.experts,
        router,
        mix.base,
        mix.base.folder,
        top_k=mix.file.top_k,
        dtype=mix.dtype,
        shard_bytes=output.shard_bytes,
        token=output.token,
        progress=output.progress,
    )
    output.digests.update(written)
    return _silent_note(mix, router)


def _fused(mix: _Mix, output: Output) -> tuple[str, ...]:
    written = build_fused(
        output.folder,
        mix.experts,
        mix.base.folder,
        dtype=mix.dtype,
        shard_bytes=output.shard_bytes,
        token=output.token,
        progress=output.progress,
    )
    output.digests.update(written)
    return () if mix.texts else ("the gate has learned from no text: it takes the mean of all experts' logits",)


_LEVELS: dict[str, Callable[[_Mix, Output], tuple[str, ...]]] = {"ffn": _ffn, "block": _block, "model": _model}


@dataclass(frozen=True)
class _Ways:
    """How routers of a level come about from pooled contexts."""

    prototypes: Callable[[Tensor, Sequence[int | None], int], RouterWeights]
    trained: Callable[[Tensor, Sequence[int | None], int, RouterTraining], RouterWeights]
    untrained: Callable[[Tensor, int, RouterTraining], RouterWeights]


_OF_MODELS = _Ways(prototypes, train_router, untrained_router)
_IN_LAYERS = _Ways(layer_prototypes, train_layer_routers, untrained_layer_routers)


def _first_router(mix: _Mix, pool: Callable[[Tensor], Tensor], ways: _Ways) -> RouterWeights:
    """The router that prompts give, or where there are none, one that is still to learn everything from text."""
    if mix.begins_without_prompts:
        examples = read_examples(
            mix.texts, mix.tokenizer(), length=mix.length, most=_FIRST_TEXTS * len(mix.experts), seed=mix.seed
        )
        features = torch.cat([pool(torch.tensor([example.ids[: example.deciding]])) for example in examples])
        return ways.untrained(features, len(mix.experts), RouterTraining(mix.inner_size, seed=mix.seed))
    features, assignment = _pooled(mix, pool)
    training = mix.training()
    if training:
        return ways.trained(features, assignment, len(mix.experts), training)
    return ways.prototypes(features, assignment, len(mix.experts))


def _pooled(mix: _Mix, pool: Callable[[Tensor], Tensor]) -> tuple[Tensor, Sequence[int]]:
    """What `pool` makes of each positive prompt, one after the other, and whose prompt each was."""
    check_prompts(mix.prompts)
    tokenizer = mix.tokenizer()
    texts = [(text, index) for index, each in enumerate(mix.prompts) for text in each.positive]
    pooled = [pool(torch.tensor([tokenizer(text)["input_ids"]])) for text, _ in texts]
    # Where tokens are routed, a prompt has a row for each of them.
    whose = [index for (_, index), rows in zip(texts, pooled, strict=True) for _ in rows]
    return torch.cat(pooled), whose


def _degenerate_note(gates: Tensor) -> tuple[str, ...]:
    layers = degenerate_layers(gates)
    if not layers:
        return ()
    named = ", ".join(map(str, layers))
    return (f"the gates of these layers hardly tell the experts apart, some will be idle: {named}",)


def _silent_note(mix: _Mix, router: RouterWeights) -> tuple[str, ...]:
    if mix.training() or mix.texts or (router.weight.norm(dim=-1) > 0.5).all():
        return ()
    return ("some experts' prompts do not differ from the others', so the router cannot choose them",)


def _invalid(pointer: str, detail: str, fix: str) -> InvalidInputError:
    return InvalidInputError(f"{detail}; {fix}", [Problem(pointer, "mix_file", detail, fix)])
