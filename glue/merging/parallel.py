"""Running the pieces of a merge side by side, in such an order that results come out one after the other.

Knows nothing of what they do.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Condition, Thread

import torch

from glue.merging.allocator import keep_freed_memory

Piece = Callable[[], None]
# Looks over what is needed before anything can be computed, then gives the pieces that are left.
Job = Callable[[], Sequence[Piece]]


def run_all(jobs: Sequence[Job], workers: int | None = None) -> Generator[int]:
    """The numbers of the jobs as they end, computed by one thread per core, each with torch single-threaded.

    Pieces start strictly in order, so that what they write is nearly sequential; whoever finds none ready prepares
    one of the next jobs. Torch releases the interpreter while it computes, so threads side by side are faster than
    threads inside each operation, and sums do not depend on the number of cores. An error is raised here, after the
    running pieces have ended.
    """
    keep_freed_memory()
    schedule = _Schedule(jobs, max(1, workers or len(os.sched_getaffinity(0))))
    with _torch_threads_kept():
        threads = [Thread(target=schedule.work, name="merge") for _ in range(schedule.workers)]
        for thread in threads:
            thread.start()
        try:
            for _ in jobs:
                yield schedule.next_end()
        finally:
            schedule.stop()
            for thread in threads:
                thread.join()


class _Schedule:
    """Who does what next; all of it is decided under one lock."""

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        self.workers = workers
        self._jobs = jobs
        self._ahead = 2 * workers + 2
        self._unprepared = 0
        self._turn = 0
        self._pieces: dict[int, deque[Piece]] = {}
        self._left: dict[int, int] = {}
        self._ends: SimpleQueue[int | BaseException] = SimpleQueue()
        self._changed = Condition()
        self._stopped = False

    def work(self) -> None:
        """Do what is to be done until nothing is left; one thread's life."""
        torch.set_num_threads(1)
        try:
            with torch.no_grad():
                while (task := self._take()) is not None:
                    task()
        except BaseException as error:
            self._ends.put(error)
            self.stop()

    def next_end(self) -> int:
        """Wait for a job to end; an error of any thread is raised."""
        end = self._ends.get()
        if isinstance(end, BaseException):
            raise end
        return end

    def stop(self) -> None:
        """Let nothing more begin."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _take(self) -> Piece | None:
        with self._changed:
            while not self._stopped and self._turn < len(self._jobs):
                if self._turn in self._pieces:
                    return self._piece()
                if self._unprepared < min(len(self._jobs), self._turn + self._ahead):
                    number, self._unprepared = self._unprepared, self._unprepared + 1
                    return lambda: self._prepare(number)
                self._changed.wait()
            return None

    def _piece(self) -> Piece:
        number = self._turn
        waiting = self._pieces[number]
        piece = waiting.popleft()
        if not waiting:
            del self._pieces[number]
            self._turn += 1
            self._changed.notify_all()

        def run() -> None:
            piece()
            self._ended(number)

        return run

    def _prepare(self, number: int) -> None:
        pieces = deque(self._jobs[number]()) or deque([_nothing])
        with self._changed:
            self._pieces[number], self._left[number] = pieces, len(pieces)
            self._changed.notify_all()

    def _ended(self, number: int) -> None:
        with self._changed:
            self._left[number] -= 1
            left = self._left[number]
        if not left:
            self._ends.put(number)


def _nothing() -> None:
    """The piece of a job that has none."""


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    # set_num_threads is for the whole process; whoever scores models between merges gets its number back.
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
