"""Forward passes and programs as progress: a score that takes hours is no engine that hangs."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from transformers import PreTrainedModel

from glue.evaluation.sandbox import programs_told
from glue.pipeline.context import Context

# Of the progress of a unit that scores, the part before the suite.
SCORING = 0.1
_TELL_SECONDS = 5.0


@contextmanager
def heard(model: PreTrainedModel, context: Context, fraction: float) -> Iterator[None]:
    """Tell now and then how often the model was asked, and how many programs ran, while the block runs."""
    done: Counter[str] = Counter()
    told_at = monotonic()

    def count(what: str) -> None:
        nonlocal told_at
        done[what] += 1
        if monotonic() - told_at > _TELL_SECONDS:
            told_at = monotonic()
            context.progress(fraction, "scoring: " + ", ".join(f"{number} {name}" for name, number in done.items()))

    handle = model.register_forward_pre_hook(lambda *_: count("forward passes"))
    try:
        with programs_told(lambda: count("programs")):
            yield
    finally:
        handle.remove()
