"""Functions that run at the same moment, each in a thread of its own."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

Value = TypeVar("Value")


def at_once(functions: Sequence[Callable[[], Value]]) -> list[Value]:
    """Start all of them together; their values, or the first error."""
    barrier = Barrier(len(functions))

    def start(function: Callable[[], Value]) -> Value:
        barrier.wait(10)
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(start, functions))
