"""Greedy generation until a stop string, in batches padded on the left, with a KV cache."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from glue.evaluation.batches import Batch, Tokens, padded, routing_of


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    *,
    new_tokens: int,
    stops: Sequence[str],
    batch: Batch,
    ends: frozenset[int] = frozenset(),
) -> list[str]:
    """What the model writes after each prompt: until an end token, a stop string (which is still in the text,
    with what follows it in the same token) or `new_tokens` tokens. A sample does not wait for its batch mates.
    `ends` are end tokens beside those of the model and the tokenizer.
    """
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda number: (-len(prompts[number]), prompts[number]))

    def write(numbers: Sequence[int]) -> list[list[int]]:
        some = [prompts[number] for number in numbers]
        return _continue(model, tokenizer, some, new_tokens, stops, end_tokens(model, tokenizer) | ends)

    for numbers, written in batch.run(order, write):
        for number, tokens in zip(numbers, written, strict=True):
            texts[number] = str(tokenizer.decode(tokens, skip_special_tokens=True))
    return texts


def _continue(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    new_tokens: int,
    stops: Sequence[str],
    ends: set[int],
) -> list[list[int]]:
    ids, mask = padded(prompts, "left", model.device)
    settings: dict[str, Any] = {"eos_token_id": sorted(ends)} if ends else {}
    write: Any = model.generate
    output = write(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([StopStrings(tokenizer, stops, ids.shape[1])]),
        **routing_of(model, prompts),
        **settings,
    )
    return [_until_end(row[ids.shape[1] :], ends) for row in output.tolist()]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens after which a sample is finished: the model's and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    known = configured if isinstance(configured, list) else [configured]
    return {token for token in [*known, tokenizer.eos_token_id] if token is not None}


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    first = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:first]


class StopStrings(StoppingCriteria):
    """Finishes each sample on its own once its new text holds a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], prompt_length: int) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._prompt_length = prompt_length
        # A token holds at least one byte, so a stop string that has just ended began within that many tokens.
        self._reach = max((len(stop.encode()) for stop in self._stops), default=0) + 1

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        recent = input_ids[:, max(self._prompt_length, input_ids.shape[1] - self._reach) :]
        texts = self._tokenizer.batch_decode(recent, skip_special_tokens=True) if self._stops else [""] * len(recent)
        found = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(found, device=input_ids.device)
