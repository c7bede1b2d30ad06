"""Models with different vocabularies brought to a common one, row by row of the embedding. Knows no method.

Rows follow tokens by their text. A model that lacks a token gets, as in mergekit: the row that the file asks
for; else the only row there is; else the base's; else the mean over the models that have the token; and zero
where none has. Rows that only pad the vocabulary to a multiple get the mean of all rows of the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glue.specs.errors import InvalidInputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = tuple[str, int]


@dataclass(frozen=True, eq=False)
class RowMap:
    """How the rows of one model come about: `own[row]` is a row of the model itself, or -1 where `defaults[row]`
    names rows of any models whose mean is taken (none of them: zero). Rows past `own`, up to `rows`, are the
    model's mean.
    """

    rows: int
    own: Tensor
    defaults: Mapping[int, tuple[Row, ...]]

    @property
    def is_identity(self) -> bool:
        """Whether every row stays where it is."""
        return self.rows == len(self.own) and torch.equal(self.own, torch.arange(len(self.own)))


@dataclass(frozen=True)
class TokenRule:
    """Where the row of a token comes from, for models that lack it, or with `force` for all; no rows mean zero."""

    rows: tuple[Row, ...]
    force: bool


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The folder's tokenizer; remote code never runs.

    Raises:
        InvalidInputError: there is none that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInputError(f"{folder.name} has no tokenizer that can be loaded: {error}") from None
    return tokenizer


def token_rows(tokenizer: "PreTrainedTokenizerBase", rows: int) -> dict[str, int]:
    """Token to row, in order of rows, of those tokens that have one in an embedding of `rows`."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return {token: row for token, row in vocabulary if row < rows}


def add_union(
    tokenizer: "PreTrainedTokenizerBase", others: Sequence["PreTrainedTokenizerBase"], rows: Sequence[int]
) -> None:
    """Add to `tokenizer` every token of the others that it lacks, in their order; `rows` bound their tokens' ids."""
    known = set(tokenizer.get_vocab())
    for other, bound in zip(others, rows, strict=True):
        added = other.added_tokens_decoder
        for token, row in token_rows(other, bound).items():
            if token not in known:
                tokenizer.add_tokens(added.get(row, token))
                known.add(token)


def row_maps(
    vocabulary: Mapping[str, int],
    models: Mapping[str, Mapping[str, int]],
    base: str | None,
    rules: Mapping[str, TokenRule],
    multiple: int,
) -> dict[str, RowMap]:
    """The row map of every model into `vocabulary` (token to row), padded to a multiple of `multiple` rows.

    `models` holds each model's own token to row.
    """
    count = max(vocabulary.values(), default=-1) + 1
    total = -(-count // multiple) * multiple
    own = {name: torch.full((count,), -1, dtype=torch.int64) for name in models}
    defaults: dict[int, tuple[Row, ...]] = {}
    for token, row in vocabulary.items():
        holders = {name: tokens[token] for name, tokens in models.items() if token in tokens}
        rule = rules.get(token)
        defaults[row] = rule.rows if rule is not None else _default(holders, base)
        if rule is None or not rule.force:
            for name, place in holders.items():
                own[name][row] = place
    return {name: _row_map(total, mapping, defaults) for name, mapping in own.items()}


def _default(holders: Mapping[str, int], base: str | None) -> tuple[Row, ...]:
    if base is not None and base in holders:
        return ((base, holders[base]),)
    return tuple(holders.items())


def _row_map(total: int, own: Tensor, defaults: Mapping[int, tuple[Row, ...]]) -> RowMap:
    lacking = torch.nonzero(own < 0).flatten().tolist()
    return RowMap(total, own, {row: defaults.get(row, ()) for row in lacking})
