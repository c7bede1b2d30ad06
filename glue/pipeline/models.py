"""Models as the pipeline uses them: checked on the meta device, opened once, resident between units."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from glue.checkpoints.reader import Checkpoint
from glue.mixture.load import load_model
from glue.pipeline.context import Context
from glue.pipeline.outcomes import Outcomes
from glue.references.headers import folder_tensors
from glue.specs.errors import IncompatibleModelsError, Problem
from glue.specs.job import JobSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_complete(name: str, folder: Path) -> None:
    """Compare a folder's headers with the model that its config describes, built without memory.

    Raises:
        IncompatibleModelsError: with a problem for every tensor that is missing or has another shape.
    """
    expected = _expected_shapes(folder)
    found = folder_tensors(folder)
    missing = [key for key in expected if key not in found]
    wrong = [key for key, shape in expected.items() if key in found and found[key].shape != shape]
    problems = [Problem(f"/{name}", "tensor_missing", f"the tensor {key} is missing") for key in missing]
    problems += [
        Problem(f"/{name}", "tensor_shape", f"{key} has shape {found[key].shape}, its config says {expected[key]}")
        for key in wrong
    ]
    if problems:
        raise IncompatibleModelsError(f"'{name}' is not the model that its config.json describes", problems)


def _expected_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    tied = set(model.all_tied_weights_keys)
    return {
        key: tuple(tensor.shape)
        for key, tensor in model.state_dict().items()
        # A tied tensor may be stored or left to its twin.
        if key not in tied
    }


def checkpoints(spec: JobSpec, context: Context) -> dict[str, Checkpoint]:
    """The zoo's entries, opened once for the engine's life."""
    return context.keep("checkpoints", spec.models, lambda: _open(spec))


def _open(spec: JobSpec) -> dict[str, Checkpoint]:
    return {name: Checkpoint.open(Path(path)) for name, path in spec.paths().items()}


def resident_model(member: str, dtype: str, spec: JobSpec, outcomes: Outcomes, context: Context) -> PreTrainedModel:
    """A model of the member's signature whose parameters any candidate of it can be merged into."""
    key = (outcomes.resolve().model(member).signature, dtype, context.device)
    folder = Path(spec.paths()[member])
    return context.keep("model", key, lambda: load_model(folder, DTYPES[dtype], context.device))


def zoo_tokenizer(spec: JobSpec, context: Context) -> PreTrainedTokenizerBase:
    """The tokenizer that all members share."""
    folder = spec.paths()[spec.zoo.member_names()[0]]
    return context.keep("tokenizer", folder, lambda: load_tokenizer(Path(folder)))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A folder's tokenizer; remote code never runs."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return tokenizer
