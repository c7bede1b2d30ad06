"""A built mixture whose routers learn from text, and get their place in its shards. Knows no mixture file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from glue.checkpoints.disk import write_whole
from glue.checkpoints.replace import replace_tensors
from glue.mixture.language_training import LanguageTraining, Trained, train_routers
from glue.mixture.load import load_model
from glue.mixture.training_text import Example, read_examples
from glue.mixture.watched_routers import WatchedRouters
from glue.mixture.writing import Output

RECORD_FILE = "router_training.json"
STATE_FILE = "router_training.safetensors.state"

# An expert that a router prefers less often than this has nothing to say there.
_IDLE_SHARE = 0.01
# Of the progress that a training reports, the part before the shards are written.
_LEARNING = 0.95


def train_mixture(
    output: Output,
    texts: Sequence[Path],
    training: LanguageTraining,
    *,
    tokenizer: PreTrainedTokenizerBase,
    experts: Sequence[str],
    length: int,
    device: str,
) -> tuple[str, ...]:
    """Train the routers of the mixture in the folder, and put them back into its shards; gives notes for the user.

    With `autocast` the model is loaded in bfloat16, else in float32. Every other tensor keeps its bytes. What was
    learned when is left in `router_training.json`, which says that the training is done: a run that was killed goes
    on where it was, and ends in the same bytes on the same device and number of threads.

    Raises:
        InvalidInputError: the texts cannot be used.
        DiskFullError: there is no space.
    """
    folder = output.folder
    record = folder / RECORD_FILE
    if not record.is_file():
        examples = read_examples(texts, tokenizer, length=length, most=training.examples, seed=training.seed)
        found = _learn(output, examples, training, device)
        write_whole(record, _as_json(found, training), output.token)
    (folder / STATE_FILE).unlink(missing_ok=True)
    return idle_notes(json.loads(record.read_bytes())["shares"], experts)


def idle_notes(shares: Mapping[str, Sequence[float]], experts: Sequence[str]) -> tuple[str, ...]:
    """A word for each expert that routers hardly ever prefer; `shares` has each router's preferences by its name."""
    notes = []
    for index, name in enumerate(experts):
        idle = sum(each[index] < _IDLE_SHARE for each in shares.values())
        if idle:
            where = "" if len(shares) == 1 else f" in {idle} of {len(shares)} routers"
            advice = "raise router.train.balance, or give more text of its domain"
            notes.append(f"after training, {name} is hardly ever preferred{where}; {advice}")
    return tuple(notes)


def _learn(output: Output, examples: Sequence[Example], training: LanguageTraining, device: str) -> Trained:
    folder = output.folder
    model = load_model(folder, torch.bfloat16 if training.autocast else torch.float32, device)
    state, token = folder / STATE_FILE, output.token
    found = train_routers(model, examples, training, state, token, output.part(0.0, _LEARNING).progress)
    replace_tensors(folder, _stored_routers(model), token, output.part(_LEARNING, 1.0).progress)
    return found


def _stored_routers(model: PreTrainedModel) -> dict[str, Tensor]:
    """The routers' parameters by the names that they have in the folder, not those that they have in memory."""
    values = {name: parameter.detach().cpu() for name, parameter in WatchedRouters(model).parameters.items()}
    stored: dict[str, Tensor] = revert_weight_conversion(model, values)
    return stored


def _as_json(found: Trained, training: LanguageTraining) -> bytes:
    content = {"settings": asdict(training), "steps": [asdict(each) for each in found.records], "shares": found.shares}
    return (json.dumps(content, indent=1) + "\n").encode()
