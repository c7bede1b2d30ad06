"""Large libraries imported without garbage collection. Knows none of them."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quickly(library: str) -> Iterator[None]:
    """For the imports that bring in `library`: what they make lives until the end, and searching it for garbage costs
    a fifth of the start and as much again when the process ends. Nothing changes where it is there already."""
    if library in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
