"""Running independent pieces of a merge side by side. Knows nothing of what they do."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from glue.merging.allocator import keep_freed_memory

Result = TypeVar("Result")


def run_all(tasks: Sequence[Callable[[], Result]], workers: int | None = None) -> Iterator[Result]:
    """The tasks' results in order, computed by one thread per core, each with torch single-threaded.

    Blocks are small and torch releases the interpreter while it computes, so whole tensors side by side are
    faster than threads inside each operation, and sums do not depend on the number of cores. An error in a
    task is raised here, after the running ones have ended.
    """
    keep_freed_memory()
    count = min(workers or len(os.sched_getaffinity(0)), len(tasks))
    with _torch_threads_kept(), _pool(max(1, count)) as pool:
        futures: list[Future[Result]] = [pool.submit(task) for task in tasks]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "merge", initializer=torch.set_num_threads, initargs=(1,))


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    # set_num_threads is for the whole process; whoever scores models between merges gets its number back.
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
