"""Token lists into padded batches, and a mixture's routing of them; knows nothing of tasks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from glue.evaluation.memory import Room

Row = TypeVar("Row")
Result = TypeVar("Result")
Tokens = tuple[int, ...]


class Batch:
    """How many rows run at once: what is asked for, if there is room. It halves when memory runs out, and stays so."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked = size
        self._fitted = size

    @property
    def degraded(self) -> str:
        """What became of the batch that was asked for, where another machine might have kept it; otherwise empty.

        Room that is the same on every machine is part of what a score means, and no reason.
        """
        if self.size < self.asked:
            return f"out of memory: batch {self.asked} reduced to {self.size}"
        if self._fitted < self.asked:
            return f"memory of the device: batch {self.asked} reduced to {self._fitted}"
        return ""

    def run(
        self,
        rows: Sequence[Row],
        work: Callable[[Sequence[Row]], Result],
        cost: Callable[[Row], int] | None = None,
        room: Room | None = None,
    ) -> Iterator[tuple[Sequence[Row], Result]]:
        """The rows in order, a batch at a time, with what `work` makes of each.

        `cost` is the bytes of a row; a batch takes as many times those of its dearest, and no more than `room`.

        Raises:
            Exception: what `work` raises, unless it is that memory ran out for more than one row.
        """
        start = 0
        while start < len(rows):
            part = self._fitting(rows[start : start + self.size], cost, room)
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

    def _fitting(self, rows: Sequence[Row], cost: Callable[[Row], int] | None, room: Room | None) -> Sequence[Row]:
        if cost is None or room is None:
            return rows
        count = max(1, room.budget() // max(map(cost, rows)))
        if count < len(rows) and not room.is_fixed:
            self._fitted = min(self._fitted, count)
        return rows[:count]


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
