"""Log-likelihoods of continuations, many in one forward pass; knows tokens only, neither texts nor tasks."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from glue.evaluation.batches import Batch, Tokens, padded, routes, routing_of
from glue.evaluation.memory import room_of, row_bytes
from glue.specs.errors import EvaluationError

Answer = tuple[float, bool]


@dataclass(frozen=True)
class Query:
    """How likely is `continuation` after `context`? A mixture routes on `prompt`, by default the context."""

    context: Tokens
    continuation: Tokens
    prompt: Tokens = ()


@dataclass
class _Row:
    """One sequence to run through the model, with the numbers of the queries that it answers.

    Queries share it when they differ in the last token only, as one-token choices after a shared context do.
    """

    tokens: Tokens
    prompt: Tokens
    queries: list[int] = field(default_factory=list)


def log_likelihoods(model: PreTrainedModel, queries: Sequence[Query], batch: Batch, max_length: int) -> list[Answer]:
    """For each query the sum of its tokens' log-probabilities, and whether greedy decoding gives them all.

    Longer inputs than `max_length` lose tokens on the left. Computes log-probabilities in float32 and sums in
    float64. The grouping and its order depend on the queries alone.

    Raises:
        EvaluationError: a continuation has no token or more than `max_length`.
    """
    answers: list[Answer] = [(0.0, False)] * len(queries)

    def cost(row: _Row) -> int:
        return row_bytes(model, len(row.tokens), max(len(queries[number].continuation) for number in row.queries))

    ordered = _rows(model, queries, max_length)
    for rows, found in batch.run(ordered, lambda rows: _answers(model, rows, queries), cost, room_of(model.device)):
        numbers = [number for row in rows for number in row.queries]
        for number, answer in zip(numbers, found, strict=True):
            answers[number] = answer
    return answers


def _rows(model: PreTrainedModel, queries: Sequence[Query], max_length: int) -> list[_Row]:
    routed = routes(model)
    rows: dict[tuple[Tokens, Tokens], _Row] = {}
    for number, query in enumerate(queries):
        length = len(query.continuation)
        if not 0 < length <= max_length:
            raise EvaluationError(f"an answer has {length} tokens; the model takes 1 to {max_length}")
        tokens = (query.context + query.continuation)[-(max_length + 1) :]
        prompt = (query.prompt or tokens[:-length]) if routed else ()
        row = rows.setdefault((tokens[:-1], prompt), _Row(tokens[:-1], prompt))
        row.queries.append(number)
    # Longest first: memory runs out at once or never, and neighbours need little padding.
    return sorted(rows.values(), key=lambda row: (-len(row.tokens), row.tokens, row.prompt))


def _answers(model: PreTrainedModel, rows: Sequence[_Row], queries: Sequence[Query]) -> list[Answer]:
    """The answers to the rows' queries, in the rows' order."""
    lengths = [max(len(queries[number].continuation) for number in row.queries) for row in rows]
    log_probabilities = _log_probabilities(model, rows, lengths)
    # Each query's tokens lie in consecutive lines of the table, and end where its row's lines end.
    ends = np.cumsum(lengths)
    spans = [
        (end - len(queries[number].continuation), queries[number].continuation)
        for row, end in zip(rows, ends.tolist(), strict=True)
        for number in row.queries
    ]
    lines = torch.tensor([start + step for start, tokens in spans for step in range(len(tokens))])
    targets = torch.tensor([token for _, tokens in spans for token in tokens])
    lines, targets = lines.to(log_probabilities.device), targets.to(log_probabilities.device)
    starts = np.cumsum([0] + [len(tokens) for _, tokens in spans[:-1]])
    sums = np.add.reduceat(log_probabilities[lines, targets].double().cpu().numpy(), starts)
    greedy = (log_probabilities.argmax(-1)[lines] == targets).cpu().numpy()
    return list(zip(sums.tolist(), np.logical_and.reduceat(greedy, starts).tolist(), strict=True))


def _log_probabilities(model: PreTrainedModel, rows: Sequence[_Row], lengths: Sequence[int]) -> Tensor:
    """The last `lengths[i]` positions of each row, one after the other: sum(lengths) x vocabulary, float32."""
    ids, _ = padded([row.tokens for row in rows], "right", model.device)
    width = ids.shape[1]
    kept = width - min(len(row.tokens) - length for row, length in zip(rows, lengths, strict=True))
    arguments = routing_of(model, [row.prompt for row in rows])
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        arguments |= {"logits_to_keep": kept}
    # Padding lies to the right, where a causal model does not look, so no mask is needed.
    logits = model(input_ids=ids, use_cache=False, **arguments).logits[:, -kept:]
    places = [
        (number, len(row.tokens) - length + step - (width - kept))
        for number, (row, length) in enumerate(zip(rows, lengths, strict=True))
        for step in range(length)
    ]
    index = torch.tensor(places, device=logits.device)
    return torch.log_softmax(logits[index[:, 0], index[:, 1]].float(), dim=-1)
