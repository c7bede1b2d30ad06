"""Which items' choices hang on rounding; knows lm-eval's requests and numbers, no model."""

from collections.abc import Sequence

from lm_eval.api.instance import Instance

# Sums of log-probabilities in float32 differ by up to 2e-5 between the shared and the plain path (SmolLM2-135M).
TOLERANCE = 1e-3


def close_choices(requests: Sequence[Instance], sums: Sequence[float]) -> list[int]:
    """The numbers of the requests of items whose best two choices are nearly equal by any of lm-eval's measures.

    Those are the log-likelihood itself, the same by letter or byte of the choice (with and without the delimiter
    before it), and less the choice's log-likelihood without a context.
    """
    items: dict[tuple[str | None, int | None], list[int]] = {}
    for number, request in enumerate(requests):
        items.setdefault((request.task_name, request.doc_id), []).append(number)
    return [number for numbers in items.values() if _is_close(requests, sums, numbers) for number in numbers]


def _is_close(requests: Sequence[Instance], sums: Sequence[float], numbers: Sequence[int]) -> bool:
    asked: dict[tuple[str, str], float] = {requests[number].args: sums[number] for number in numbers}
    after = {pair: total for pair, total in asked.items() if pair[0]} or asked
    alone = [total for pair, total in asked.items() if not pair[0]]
    totals = list(after.values())
    texts = [text for _, text in after]
    measures = [totals]
    for lengths in (
        [len(text) for text in texts],
        [len(text.lstrip()) for text in texts],
        [len(text.encode()) for text in texts],
        [len(text.lstrip().encode()) for text in texts],
    ):
        measures.append([total / max(length, 1) for total, length in zip(totals, lengths, strict=True)])
    if len(alone) == len(totals) and alone != totals:
        measures.append([total - base for total, base in zip(totals, alone, strict=True)])
    # A measure by length has errors that are smaller by the shortest length at least.
    shortest = max(min(len(text.lstrip()) for text in texts), 1)
    return any(
        _margin(measure) <= TOLERANCE / (1 if place in (0, 5) else shortest) for place, measure in enumerate(measures)
    )


def _margin(measure: Sequence[float]) -> float:
    if len(measure) < 2:
        return float("inf")
    second, first = sorted(measure)[-2:]
    return first - second
