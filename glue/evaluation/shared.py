"""Log-likelihoods of several continuations of each context, where what is shared is computed once.

The beginning that contexts have in common (few-shot examples) is computed once and kept as a KV cache; a context
is followed by all its continuations in one sequence, in which each sees the context and itself. Results differ
from those of the plain path by rounding, so that the caller repeats on it what rounding could decide. Knows
tokens only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from glue.evaluation.batches import Batch, Tokens, routes
from glue.evaluation.likelihood import Answer, Query, log_likelihoods
from glue.evaluation.memory import room_of, row_bytes

# Shorter beginnings do not pay for the copies of their cache.
SHORTEST_PREFIX = 32
ATTENTIONS = ("sdpa", "eager")
CONTEXT, PADDING = 0, -1


@dataclass
class _Group:
    """A context with its continuations but for their last tokens (`tails`, each once).

    `queries` are pairs of a query's number and its tail's.
    """

    context: Tokens
    tails: dict[Tokens, int] = field(default_factory=dict)
    queries: list[tuple[int, int]] = field(default_factory=list)

    @property
    def tail_tokens(self) -> int:
        return sum(map(len, self.tails))


@dataclass(frozen=True)
class _Cluster:
    """Groups whose contexts begin with the same `prefix` tokens."""

    prefix: int
    groups: list[_Group]


def shared_log_likelihoods(
    model: PreTrainedModel, queries: Sequence[Query], batch: Batch, max_length: int, tolerance: float
) -> list[Answer]:
    """As `log_likelihoods`, up to rounding in the sums.

    Whether greedy decoding gives a continuation is the same: where it hangs on less than `tolerance`, the query is
    repeated on the plain path. So is what shares nothing, or does not fit.
    """
    if not can_share(model):
        return log_likelihoods(model, queries, batch, max_length)
    answers: dict[int, Answer] = {}
    for cluster in _clusters(_groups(queries, max_length)):
        answers |= _cluster_answers(model, cluster, queries, batch, tolerance)
    plain = [number for number in range(len(queries)) if number not in answers]
    found = log_likelihoods(model, [queries[number] for number in plain], batch, max_length)
    answers |= dict(zip(plain, found, strict=True))
    return [answers[number] for number in range(len(queries))]


def _groups(queries: Sequence[Query], max_length: int) -> list[_Group]:
    groups: dict[Tokens, _Group] = {}
    for number, query in enumerate(queries):
        if query.prompt or not 0 < len(query.continuation) <= max_length + 1 - len(query.context):
            continue
        group = groups.setdefault(query.context, _Group(query.context))
        tail = group.tails.setdefault(query.continuation[:-1], len(group.tails))
        group.queries.append((number, tail))
    return [groups[context] for context in sorted(groups)]


def beginnings(contexts: Sequence[Tokens]) -> list[tuple[int, list[int]]]:
    """The numbers of contexts that begin alike, with how many tokens they share; without those that stand alone."""
    numbers: dict[Tokens, list[int]] = {}
    for number, context in enumerate(contexts):
        numbers.setdefault(context, []).append(number)
    clusters = _clusters([_Group(context) for context in sorted(numbers)])
    return [
        (cluster.prefix, [number for group in cluster.groups for number in numbers[group.context]])
        for cluster in clusters
    ]


def _clusters(groups: Sequence[_Group]) -> Iterator[_Cluster]:
    """The groups, sorted by context, by what they share; those that share nothing in any way are left out."""
    alone: list[_Group] = []
    members: list[_Group] = []
    prefix: Tokens = ()
    for group in groups:
        common = _common(prefix, group.context[:-1])
        if members and common >= max(SHORTEST_PREFIX, len(prefix) // 4):
            members, prefix = [*members, group], prefix[:common]
            continue
        yield from _closed(members, len(prefix), alone)
        members, prefix = [group], group.context[:-1]
    yield from _closed(members, len(prefix), alone)
    if several := [group for group in alone if len(group.tails) > 1]:
        yield _Cluster(0, _longest_first(several))


def _closed(members: list[_Group], prefix: int, alone: list[_Group]) -> Iterator[_Cluster]:
    if len(members) > 1:
        yield _Cluster(prefix, _longest_first(members))
    else:
        alone += members


def _longest_first(groups: list[_Group]) -> list[_Group]:
    return sorted(groups, key=lambda group: (-len(group.context) - group.tail_tokens, group.context))


def _common(first: Tokens, second: Tokens) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


def _cluster_answers(
    model: PreTrainedModel, cluster: _Cluster, queries: Sequence[Query], batch: Batch, tolerance: float
) -> dict[int, Answer]:
    prefix = prefix_cache(model, cluster.groups[0].context[: cluster.prefix])
    answers: dict[int, Answer] = {}

    def cost(group: _Group) -> int:
        width = len(group.context) - cluster.prefix + group.tail_tokens
        return row_bytes(model, width, 1 + group.tail_tokens, before=cluster.prefix)

    def work(rows: Sequence[_Group]) -> dict[int, Answer]:
        return _batch_answers(model, rows, cluster, prefix, queries, tolerance)

    for _, found in batch.run(cluster.groups, work, cost, room_of(model.device)):
        answers |= found
    return answers


def prefix_cache(model: PreTrainedModel, prefix: Tokens) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of these tokens by layer, each 1 x heads x tokens x width; none without tokens."""
    if not prefix:
        return []
    ids = torch.tensor([prefix], device=model.device)
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def _batch_answers(
    model: PreTrainedModel,
    groups: Sequence[_Group],
    cluster: _Cluster,
    prefix: list[tuple[Tensor, Tensor]],
    queries: Sequence[Query],
    tolerance: float,
) -> dict[int, Answer]:
    kept = 1 + max(group.tail_tokens for group in groups)
    logits = _logits(model, groups, cluster.prefix, prefix, kept)
    spans = [
        (number, row, _places(group, tail, kept)) for row, group in enumerate(groups) for number, tail in group.queries
    ]
    rows = [row for _, row, places in spans for _ in places]
    columns = [place for _, _, places in spans for place in places]
    targets = [token for number, _, _ in spans for token in queries[number].continuation]
    index = torch.tensor([rows, columns, targets], device=logits.device)
    found, leads = _log_probabilities(logits.float(), index[0], index[1], index[2])
    sums, margins = found.double().tolist(), leads.double().tolist()
    answers, start = {}, 0
    for number, _, places in spans:
        end = start + len(places)
        if not any(abs(margin) <= tolerance for margin in margins[start:end]):
            answers[number] = (sum(sums[start:end]), all(margin > 0 for margin in margins[start:end]))
        start = end
    return answers


def _log_probabilities(logits: Tensor, rows: Tensor, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability of each target at its row and place, and its lead over the best other token.

    `logits` (rows x places x vocabulary) are used up: a table of log-probabilities beside them would cost more than
    all else that happens outside the model. Only where a target is the best itself, the second best is looked for.
    """
    wanted = logits[rows, places, targets]
    best = logits.amax(-1)
    others = best[rows, places]
    first = (wanted == others).nonzero()[:, 0]
    if len(first):
        table = logits[rows[first], places[first]].scatter_(1, targets[first, None], -torch.inf)
        others[first] = table.amax(-1)
    total = logits.sub_(best[..., None]).exp_().sum(-1).log_().add_(best)
    return wanted - total[rows, places], wanted - others


def _places(group: _Group, tail: int, kept: int) -> list[int]:
    """Where among the last `kept` positions the tokens of a continuation are predicted."""
    lengths = [len(tokens) for tokens in group.tails]
    start = kept - sum(lengths) + sum(lengths[:tail])
    return [kept - sum(lengths) - 1, *range(start, start + lengths[tail])]


def _logits(
    model: PreTrainedModel, groups: Sequence[_Group], prefix: int, cached: list[tuple[Tensor, Tensor]], kept: int
) -> Tensor:
    """Logits of the last `kept` positions, groups x kept x vocabulary."""
    ids, positions, segments = _packed(groups, prefix, model.device)
    cache = cache_for(model, cached, len(groups))
    output = model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=_mask(segments, prefix, model.dtype),
        past_key_values=cache if cached else None,
        use_cache=bool(cached),
        logits_to_keep=kept,
    )
    logits: Tensor = output.logits
    return logits[:, -kept:]


def cache_for(model: PreTrainedModel, prefix: Sequence[tuple[Tensor, Tensor]], rows: int) -> DynamicCache:
    """The prefix's keys and values, as the cache of so many rows that all begin with it."""
    cache = DynamicCache(config=model.config)
    for layer, (keys, values) in enumerate(prefix):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
    return cache


def _packed(groups: Sequence[_Group], prefix: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, positions and segments, each groups x longest, int64; padding lies to the left."""
    width = max(len(group.context) - prefix + group.tail_tokens for group in groups)
    rows = []
    for group in groups:
        length = len(group.context)
        cells = [(token, place, CONTEXT) for place, token in enumerate(group.context) if place >= prefix]
        for number, tail in enumerate(group.tails, start=1):
            cells += [(token, length + step, number) for step, token in enumerate(tail)]
        rows.append([(0, 0, PADDING)] * (width - len(cells)) + cells)
    ids, positions, segments = torch.tensor(rows, device=device).unbind(-1)
    return ids.contiguous(), positions.contiguous(), segments.contiguous()


def _mask(segments: Tensor, prefix: int, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, groups x 1 x width x (prefix + width), of `dtype`."""
    rows, width = segments.shape
    keys, askers = segments[:, None, :], segments[:, :, None]
    seen = ((keys == CONTEXT) | (keys == askers)) & (keys != PADDING)
    seen = seen & torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    # Padding sees itself: a row that sees nothing has no softmax.
    seen = seen | torch.eye(width, dtype=torch.bool, device=segments.device)
    seen = torch.cat([torch.ones(rows, width, prefix, dtype=torch.bool, device=segments.device), seen], dim=-1)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


_known: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def can_share(model: PreTrainedModel) -> bool:
    """Whether the model takes masks, positions and caches as this module gives them, shown on a few tokens."""
    if model not in _known:
        _known[model] = _says_so(model) and _shows_it(model)
    return _known[model]


def _says_so(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return (
        not routes(model) and kinds == {"full_attention"} and not windowed and config._attn_implementation in ATTENTIONS
    )


def _shows_it(model: PreTrainedModel) -> bool:
    contexts = [(1, 2, 3, 1, 2), (1, 2, 3, 2)]
    queries = [Query(context, rest) for context in contexts for rest in ((3, 1), (2, 2, 1), (1,))]
    cluster = _Cluster(3, _groups(queries, 16))
    # A wrong mask moves these by whole units; odd tokens in an odd order magnify rounding.
    allowed = 0.02 if model.dtype == torch.float32 else 0.5
    try:
        found = _cluster_answers(model, cluster, queries, Batch(2), tolerance=-1)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError):
        return False
    expected = log_likelihoods(model, queries, Batch(2), 16)
    return all(abs(found[number][0] - total) <= allowed for number, (total, _) in enumerate(expected))
