"""A model's forward passes as progress: a score that takes hours is no engine that hangs."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from transformers import PreTrainedModel

from glue.pipeline.context import Context

# Of the progress of a unit that scores, the part before the suite.
SCORING = 0.1
_TELL_SECONDS = 5.0


@contextmanager
def heard(model: PreTrainedModel, context: Context, fraction: float) -> Iterator[None]:
    """Tell now and then how often the model was asked while the block runs."""
    passes, told_at = 0, monotonic()

    def count(*_: object) -> None:
        nonlocal passes, told_at
        passes += 1
        if monotonic() - told_at > _TELL_SECONDS:
            told_at = monotonic()
            context.progress(fraction, f"scoring, {passes} forward passes")

    handle = model.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()
