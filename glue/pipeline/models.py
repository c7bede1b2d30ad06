"""Models as the pipeline uses them: opened once, resident between units."""

import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from glue.checkpoints.adapter import open_checkpoint
from glue.checkpoints.dtypes import config_dtype
from glue.checkpoints.reader import Checkpoint
from glue.merging.data_flow import config_for, recipe_for
from glue.merging.engine import write_recipe
from glue.mixture.load import empty_model, load_model
from glue.pipeline.context import Context
from glue.pipeline.outcomes import Outcomes
from glue.specs.expression import Member, Merge, is_data_flow, members_of
from glue.specs.job import JobSpec
from glue.specs.kinds import ModelJobSpec
from glue.specs.zoo import BASE

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def checkpoints(spec: ModelJobSpec, context: Context) -> dict[str, Checkpoint]:
    """The models of a job, opened once for the engine's life."""
    return context.keep("checkpoints", spec.models, lambda: _open(spec))


def _open(spec: ModelJobSpec) -> dict[str, Checkpoint]:
    return {name: open_checkpoint([Path(each) for each in folders]) for name, folders in spec.folders().items()}


def write_merged(expression: Member | Merge, folder: Path, spec: JobSpec, context: Context, token: int) -> None:
    """Write an expression over the zoo's entries as a whole model, as the job's output says."""
    opened = checkpoints(spec, context)
    write_recipe(
        recipe_for(expression, opened, config_dtype(spec.output.dtype)),
        opened,
        folder,
        dtype=spec.output.dtype,
        shard_bytes=spec.output.shard_bytes,
        token=token,
        progress=context.progress,
    )


def resident_model(
    expression: Member | Merge, dtype: str, spec: JobSpec, outcomes: Outcomes, context: Context
) -> PreTrainedModel:
    """A model whose parameters this candidate, and any other of the same shape, can be merged into."""
    member = members_of(expression)[0]
    inspected = outcomes.resolve().model(member)
    key = (inspected.signature, inspected.vocabulary, dtype, context.device)
    folder = Path(spec.paths()[member])
    if isinstance(expression, Merge) and is_data_flow(expression):
        config = config_for(expression, checkpoints(spec, context))
        deep = (*key, json.dumps(config, sort_keys=True))
        return context.keep("model", deep, lambda: empty_model(config, folder, DTYPES[dtype], context.device))
    return context.keep("model", key, lambda: load_model(folder, DTYPES[dtype], context.device))


def mixture_member(spec: JobSpec, outcomes: Outcomes) -> str:
    """The entry whose tokenizer a mixture reads: the base's, without one the first member's."""
    return _first_alike(BASE if spec.zoo.base else spec.zoo.member_names()[0], spec, outcomes)


def tokenizer_of(name: str, spec: JobSpec, outcomes: Outcomes, context: Context) -> PreTrainedTokenizerBase:
    """The tokenizer of an entry, one object for all entries that share it."""
    folder = spec.paths()[_first_alike(name, spec, outcomes)]
    return context.keep(f"tokenizer {folder}", folder, lambda: load_tokenizer(Path(folder)))


def _first_alike(name: str, spec: JobSpec, outcomes: Outcomes) -> str:
    """The first member with that entry's tokenizer, or the entry itself: a base may lack a chat template."""
    own = outcomes.resolve().model(name).tokenizer
    alike = [member for member in spec.zoo.member_names() if outcomes.resolve().model(member).tokenizer == own]
    return next(iter(alike), name)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A folder's tokenizer; remote code never runs."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return tokenizer
