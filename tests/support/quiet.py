"""Torch on one thread, transformers without progress bars."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.utils import logging


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread: with more, small batches of some shapes round differently. No progress bars."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)
