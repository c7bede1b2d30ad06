"""Telling how far a merge is: bytes, rate and time left. Knows nothing of what is written."""

from time import monotonic

from glue.checkpoints.writer import Progress

_MEGABYTE = 1e6


class ByteProgress:
    """Counts bytes towards a total and tells each step; what was there from an earlier run does not enter the rate."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total = max(1, total)
        self._progress = progress
        self._done = 0
        self._skipped = 0
        self._started = monotonic()

    def add(self, count: int) -> None:
        """Tell that `count` bytes were written."""
        self._done += count
        self._progress(self._done / self._total, self._message())

    def skip(self, count: int) -> None:
        """Tell that `count` bytes were there already."""
        self._skipped += count
        self.add(count)

    def _message(self) -> str:
        sizes = f"{self._done / _MEGABYTE:.0f} of {self._total / _MEGABYTE:.0f} MB"
        seconds = monotonic() - self._started
        fresh = self._done - self._skipped
        if fresh == 0 or seconds == 0:
            return sizes
        rate = fresh / seconds
        return f"{sizes}, {rate / _MEGABYTE:.0f} MB/s, {(self._total - self._done) / rate:.0f} s left"
