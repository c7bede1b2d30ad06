"""Trains one model of the small zoo and saves it whole. Deterministic on one thread; knows nothing of processes."""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from examples.small_zoo.data import DOMAINS, Item
from examples.small_zoo.recipe import ModelRecipe, Share
from examples.small_zoo.tokenizer import BOS, EOS, MAX_LENGTH, PAD, VOCABULARY, char_tokenizer
from glue.checkpoints.disk import TEMPORARY, flush_folder

Progress = Callable[[int], None]

WARM_UP_STEPS, LAST_RATE = 20, 0.1
BETAS = (0.9, 0.99)
IGNORED = -100

SHAPE: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_LENGTH,
    "pad_token_id": VOCABULARY[PAD],
    "bos_token_id": VOCABULARY[BOS],
    "eos_token_id": VOCABULARY[EOS],
}


def build_model(recipe: ModelRecipe, batch: int, models: Path, progress: Progress) -> None:
    """Train the model and put its folder into `models` in one step; `progress` hears of every training step."""
    model = _starting_point(recipe, models)
    train(model, recipe, batch, progress)
    partial = models / f"{recipe.name}{TEMPORARY}{os.getpid()}"
    model.save_pretrained(partial)
    char_tokenizer().save_pretrained(partial)
    partial.rename(models / recipe.name)
    flush_folder(models)


def train(model: PreTrainedModel, recipe: ModelRecipe, batch: int, progress: Progress) -> None:
    """Minimise the cross entropy of the targets with AdamW; the rate warms up, then falls linearly."""
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, BETAS, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe.steps))
    items = training_items(recipe, batch)
    model.train()
    for step in range(recipe.steps):
        optimizer.zero_grad()
        for tokens, labels in _parts(items[step * batch : (step + 1) * batch]):
            (_summed_loss(model, tokens, labels) / batch).backward()  # type: ignore[no-untyped-call]  # torch has no types here
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(step + 1)


def training_items(recipe: ModelRecipe, batch: int) -> list[Item]:
    """The items of all steps, in their order."""
    count, total = recipe.steps * batch, sum(share.weight for share in recipe.shares)
    first, *rest = recipe.shares
    others = [item for share in rest for item in _draw(share, count * share.weight // total)]
    items = _draw(first, count - len(others)) + others
    Random(f"order {recipe.order}").shuffle(items)
    return items


def _draw(share: Share, count: int) -> list[Item]:
    pool = getattr(DOMAINS[share.domain](), share.part)
    return Random(f"{share.domain} {share.part}").choices(pool, k=count)


def _starting_point(recipe: ModelRecipe, models: Path) -> PreTrainedModel:
    if recipe.parent is not None:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(models / recipe.parent, dtype=torch.float32)
        return model
    torch.manual_seed(recipe.initialisation)
    return ARCHITECTURES[recipe.architecture]()


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=256, tie_word_embeddings=True))


def _gpt_neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, intermediate_size=384, tie_word_embeddings=False))


ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {"llama": _llama, "gpt_neox": _gpt_neox}


def _rate(step: int, steps: int) -> float:
    return min((step + 1) / WARM_UP_STEPS, max(LAST_RATE, 1 - step / steps))


def _parts(items: Sequence[Item]) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and labels, items x length, apart for each domain: its items are of about one length."""
    for _, group in groupby(sorted(items, key=_domain), key=_domain):
        encoded = [(_encode(item.context), [*_encode(item.target), VOCABULARY[EOS]]) for item in group]
        tokens = [torch.tensor(context + target) for context, target in encoded]
        labels = [torch.tensor([IGNORED] * len(context) + target) for context, target in encoded]
        yield (
            pad_sequence(tokens, batch_first=True, padding_value=VOCABULARY[PAD]),
            pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        )


def _domain(item: Item) -> str:
    return item.context.partition(":")[0]


def _encode(text: str) -> list[int]:
    return [VOCABULARY[character] for character in text]


def _summed_loss(model: PreTrainedModel, tokens: Tensor, labels: Tensor) -> Tensor:
    # Padding is on the right, where causal attention never looks from a target: no mask is needed.
    logits = model(input_ids=tokens, use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")
