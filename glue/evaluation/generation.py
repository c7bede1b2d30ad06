"""Greedy generation until a stop string, in batches padded on the left, with a KV cache.

The beginning that prompts have in common (few-shot examples) is computed once. Answers whose greedy token could hang on
rounding are then written again without that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from glue.evaluation.batches import Batch, Tokens, padded, routing_of
from glue.evaluation.memory import room_of, row_bytes
from glue.evaluation.shared import beginnings, cache_for, can_share, prefix_cache


@dataclass(frozen=True)
class _Written:
    """New tokens up to an end token, and the least lead that one of them had over the next best."""

    tokens: list[int]
    lead: float


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    *,
    new_tokens: int,
    stops: Sequence[str],
    batch: Batch,
    ends: frozenset[int] = frozenset(),
    tolerance: float | None = None,
) -> list[str]:
    """What the model writes after each prompt: until an end token, a stop string (which is still in the text,
    with what follows it in the same token) or `new_tokens` tokens. A sample does not wait for its batch mates.
    `ends` are end tokens beside those of the model and the tokenizer.

    With a `tolerance` common beginnings are computed once, where the model allows it. In float32 texts with a token
    that leads by no more than that are written again on the plain path, so that the texts are the same.
    """
    writer = _Writer(model, tokenizer, new_tokens, stops, batch, end_tokens(model, tokenizer) | ends)
    written: dict[int, _Written] = {}
    if tolerance is not None and can_share(model):
        for prefix, numbers in beginnings(prompts):
            if prefix:
                written |= writer.write(prompts, numbers, prefix)
        if model.dtype == torch.float32:
            written = {number: each for number, each in written.items() if each.lead > tolerance}
    written |= writer.write(prompts, [number for number in range(len(prompts)) if number not in written])
    return [str(tokenizer.decode(written[number].tokens, skip_special_tokens=True)) for number in range(len(prompts))]


class _Writer:
    """Writes after prompts, in batches of like length."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        new_tokens: int,
        stops: Sequence[str],
        batch: Batch,
        ends: set[int],
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._new_tokens, self._stops, self._batch = new_tokens, stops, batch
        self._ends = ends

    def write(self, prompts: Sequence[Tokens], numbers: Sequence[int], prefix: int = 0) -> dict[int, _Written]:
        """The new tokens of these prompts, whose first `prefix` tokens are the same."""
        shared = prefix_cache(self._model, prompts[numbers[0]][:prefix]) if prefix else []
        order = sorted(numbers, key=lambda number: (-len(prompts[number]), prompts[number]))

        def cost(number: int) -> int:
            return row_bytes(self._model, len(prompts[number]) - prefix + self._new_tokens, 1, before=prefix)

        def work(part: Sequence[int]) -> list[_Written]:
            return self._continue([prompts[number] for number in part], prefix, shared)

        found: dict[int, _Written] = {}
        for part, texts in self._batch.run(order, work, cost, room_of(self._model.device)):
            found |= dict(zip(part, texts, strict=True))
        return found

    def _continue(
        self, prompts: Sequence[Tokens], prefix: int, shared: Sequence[tuple[Tensor, Tensor]]
    ) -> list[_Written]:
        ids, mask = padded([prompt[prefix:] for prompt in prompts], "left", self._model.device)
        settings: dict[str, Any] = {"eos_token_id": sorted(self._ends)} if self._ends else {}
        if shared:
            # Padding lies between the beginning and the rest; the mask hides it and counts the positions.
            beginning = torch.tensor([prompts[0][:prefix]], device=ids.device).expand(len(prompts), -1)
            ids = torch.cat([beginning, ids], dim=1)
            mask = torch.cat([torch.ones_like(beginning), mask], dim=1)
            settings["past_key_values"] = cache_for(self._model, shared, len(prompts))
        stopping, leads = StopStrings(self._tokenizer, self._stops, ids.shape[1]), _Leads()
        write: Any = self._model.generate
        output = write(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self._new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([stopping]),
            # Where nothing is shared, nobody asks for the leads.
            logits_processor=LogitsProcessorList([leads] if shared else []),
            **routing_of(self._model, prompts),
            **settings,
        )
        rows = [row[ids.shape[1] :] for row in output.tolist()]
        return [self._written(row, leads.of(place), stopping.steps(place)) for place, row in enumerate(rows)]

    def _written(self, row: list[int], leads: Sequence[float], steps: int | None) -> _Written:
        tokens = _until_end(row, self._ends)
        # What is written after a sample has finished says nothing.
        last = min(len(tokens) + 1, len(leads) if steps is None else steps)
        return _Written(tokens, min(leads[:last], default=float("inf")))


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens after which a sample is finished: the model's and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    known = configured if isinstance(configured, list) else [configured]
    return {token for token in [*known, tokenizer.eos_token_id] if token is not None}


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    first = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:first]


class _Leads(LogitsProcessor):
    """Changes nothing, and remembers by how much each greedy token leads."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        first, second = scores.float().topk(2, dim=-1).values.unbind(-1)
        self._steps.append(first - second)
        return scores

    def of(self, row: int) -> list[float]:
        """The leads of a row, one a step."""
        return [float(step[row]) for step in self._steps]


class StopStrings(StoppingCriteria):
    """Finishes each sample on its own once its new text holds a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], prompt_length: int) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._prompt_length = prompt_length
        # A token holds at least one byte, so a stop string that has just ended began within that many tokens.
        self._reach = max((len(stop.encode()) for stop in self._stops), default=0) + 1
        self._found: dict[int, int] = {}

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        recent = input_ids[:, max(self._prompt_length, input_ids.shape[1] - self._reach) :]
        texts = self._tokenizer.batch_decode(recent, skip_special_tokens=True) if self._stops else [""] * len(recent)
        found = [any(stop in text for stop in self._stops) for text in texts]
        for row in (row for row, is_found in enumerate(found) if is_found):
            self._found.setdefault(row, input_ids.shape[1] - self._prompt_length)
        return torch.tensor(found, device=input_ids.device)

    def steps(self, row: int) -> int | None:
        """How many tokens a row had when its stop string was found; none if it was not."""
        return self._found.get(row)
