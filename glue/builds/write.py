"""A build's model written into a folder, and loaded once if that is asked for. Knows no job's stages."""

from pathlib import Path
from typing import Any

import torch

from glue.builds.kinds import parse_config, text_of
from glue.builds.texts import check_text
from glue.checkpoints.writer import Progress
from glue.merging.mergekit_yaml import MergekitFile, ModelReference
from glue.merging.model_source import ModelSource
from glue.merging.run import write_merge
from glue.merging.trial import TOKENS, run_once
from glue.mixture.load import load_model
from glue.mixture.mix_yaml import MixFile
from glue.mixture.run import write_mix
from glue.specs.build import BuildJobSpec
from glue.stacking.modelling import run_stack_once
from glue.stacking.run import write_stack


def write_build(spec: BuildJobSpec, out: Path, token: int, progress: Progress, device: str = "cpu") -> tuple[str, ...]:
    """Build the model in the folder `out`, where an earlier attempt may have left shards; gives notes for the user.
    Routers that learn from text do so on `device`.

    The folder is verified and complete with its manifest; it is also loaded and run once where the job says so.

    Raises:
        InvalidInputError: the config does not fit the models.
        IncompatibleModelsError: the models do not fit together, or the result is not a model that runs.
        DiskFullError: there is no space; nothing that looks finished is left.
    """
    check_text(spec.texts)
    notes = _written(spec, out, token, progress, device)
    if spec.verify == "load":
        progress(1.0, "loading the result")
        _CHECKS[spec.kind](out)
    return notes


def _written(spec: BuildJobSpec, out: Path, token: int, progress: Progress, device: str) -> tuple[str, ...]:
    def locate(reference: ModelReference) -> tuple[Path, ...]:
        return tuple(Path(folder) for folder in spec.model(spec.references[text_of(reference)]).folders())

    config = parse_config(spec.kind, spec.config)
    size = spec.shard_bytes
    if isinstance(config, MergekitFile):
        write_merge(config, locate, out, shard_bytes=size, seed=spec.seed, token=token, progress=progress)
        return ()
    if isinstance(config, MixFile):
        names = [_expert_name(spec, expert.source_model, index) for index, expert in enumerate(config.experts)]
        return write_mix(
            config,
            locate,
            out,
            names=names,
            shard_bytes=size,
            seed=spec.seed,
            token=token,
            progress=progress,
            texts=[Path(text.path) for text in spec.texts],
            device=device,
        )
    return write_stack(config, locate, out, shard_bytes=size, token=token, progress=progress)


def _expert_name(spec: BuildJobSpec, source: ModelSource, index: int) -> str:
    return f"merge-{index}" if source.reference is None else spec.references[text_of(source.reference)]


def _run_mixture_once(folder: Path) -> None:
    # Generated, since experts with tokenizers of their own have no logits over the mixture's.
    model: Any = load_model(folder, torch.float32, "cpu")
    ids = torch.arange(TOKENS).unsqueeze(0) % model.config.vocab_size
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)


_CHECKS = {"merge": run_once, "mixture": _run_mixture_once, "stack": run_stack_once}
