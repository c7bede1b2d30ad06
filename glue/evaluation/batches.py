"""Token lists into padded batches, and a mixture's routing of them; knows nothing of tasks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

Row = TypeVar("Row")
Result = TypeVar("Result")
Tokens = tuple[int, ...]


class Batch:
    """How many rows run at once. It halves when memory runs out, and stays so."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked = size

    @property
    def degraded(self) -> str:
        """What became of the batch that was asked for; empty while it is kept."""
        return "" if self.size == self.asked else f"out of memory: batch {self.asked} reduced to {self.size}"

    def run(
        self, rows: Sequence[Row], work: Callable[[Sequence[Row]], Result]
    ) -> Iterator[tuple[Sequence[Row], Result]]:
        """The rows in order, a batch at a time, with what `work` makes of each.

        Raises:
            Exception: what `work` raises, unless it is that memory ran out for more than one row.
        """
        start = 0
        while start < len(rows):
            part = rows[start : start + self.size]
            try:
                result = work(part)
            except (RuntimeError, MemoryError) as error:
                if len(part) == 1 or not _is_out_of_memory(error):
                    raise
                self.size = len(part) // 2
            else:
                yield part, result
                start += len(part)
                continue
            # Here the error, and with it the tensors of its frames, is gone.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _is_out_of_memory(error: Exception) -> bool:
    # On CPUs torch raises a plain RuntimeError that says "can't allocate memory".
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


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
