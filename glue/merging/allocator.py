"""The C allocator told to keep what it has. Knows nothing of merging.

A merge makes and drops buffers of a few hundred kilobytes all the time. glibc gives such memory back to the
system at once and asks for it again, and the page faults then cost more than the arithmetic: merging with
random masks took twice the time.
"""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEPT_BYTES = 64 * 1024 * 1024
# The largest value that glibc accepts.
_LARGEST_HEAP_BLOCK = 32 * 1024 * 1024


@cache
def keep_freed_memory() -> None:
    """Keep up to 64 MB of freed memory per arena. Does nothing where the C library has no `mallopt`."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_TOP_PAD, 2 * 1024 * 1024)
    mallopt(_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK)
