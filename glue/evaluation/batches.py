"""Token lists into padded batches, and a mixture's routing of them; knows nothing of tasks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

Row = TypeVar("Row")
Tokens = tuple[int, ...]


def in_batches(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """The rows in order, `size` at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def padded(rows: Sequence[Tokens], side: Literal["left", "right"], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both rows x longest, int64; padding has id 0 and mask 0."""
    width = max(len(row) for row in rows)
    gaps = [width - len(row) for row in rows]
    if side == "left":
        ids = [[0] * gap + list(row) for row, gap in zip(rows, gaps, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
    else:
        ids = [list(row) + [0] * gap for row, gap in zip(rows, gaps, strict=True)]
        mask = [[1] * (width - gap) + [0] * gap for gap in gaps]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def routes(model: PreTrainedModel) -> bool:
    """Whether the model is a mixture that decides once for a sample which experts answer."""
    return hasattr(model, "route")


def routing_of(model: PreTrainedModel, prompts: Sequence[Tokens]) -> dict[str, Any]:
    """The argument that makes a mixture decide on these prompts alone; none for an ordinary model."""
    route: Callable[[Tensor, Tensor], Tensor] | None = getattr(model, "route", None)
    return {} if route is None else {"routing": route(*padded(prompts, "right", model.device))}
