"""Halving: a generation on a part of the items first, and only its best on all of them. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from glue.search.history import Observed
from glue.specs.expression import Candidate, expression_digest

# One step of the precision of scores: what was dropped ranks strictly behind what was kept.
BEHIND = 1e-6
SCORE_DIGITS = 6


@dataclass(frozen=True)
class Screened:
    """How a generation was halved, by expression digest; `kept` begins with the best on the part."""

    kept: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class Missing:
    """Candidates that have to be scored before the generation can be seen: on a part of the items, or on all."""

    candidates: tuple[Candidate, ...]
    on_a_part: bool


def unique(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """The candidates by digest, in order, the first of equals."""
    found: dict[str, Candidate] = {}
    for candidate in candidates:
        found.setdefault(expression_digest(candidate.expression), candidate)
    return found


def halve(
    generation: Sequence[Candidate],
    on_a_part: Mapping[str, Observed],
    on_all: Mapping[str, Observed],
    seen: frozenset[str],
    keep: float,
) -> tuple[tuple[Observed, ...], Screened] | Missing:
    """The generation as the strategy sees it, or what has to be scored first.

    `seen` are the digests that had a score on all items before this generation; they are no part of the contest. Only
    they are looked up without one: a score that a later generation brings must not change an earlier one.
    """
    fresh = {digest: each for digest, each in unique(generation).items() if digest not in seen}
    unscreened = tuple(each for digest, each in fresh.items() if digest not in on_a_part)
    if unscreened:
        return Missing(unscreened, on_a_part=True)
    ranked = _ranked([digest for digest in fresh if on_a_part[digest].mean is not None], on_a_part)
    kept = ranked[: ceil(keep * len(ranked))]
    unscored = tuple(fresh[digest] for digest in fresh if digest in kept and digest not in on_all)
    if unscored:
        return Missing(unscored, on_a_part=False)
    lowest = min((mean for digest in kept if (mean := on_all[digest].mean) is not None), default=None)

    def observed(candidate: Candidate) -> Observed:
        digest = expression_digest(candidate.expression)
        if digest in seen:
            return replace(on_all[digest], candidate=candidate, seconds=0.0, items=0)
        part = on_a_part[digest]
        first = fresh[digest] is candidate
        if digest in kept:
            whole = on_all[digest]
            seconds, items = part.seconds + whole.seconds, part.items + whole.items
            return Observed(candidate, whole.mean, seconds * first, items * first)
        mean = None if part.mean is None or lowest is None else round(min(part.mean, lowest - BEHIND), SCORE_DIGITS)
        return Observed(candidate, mean, part.seconds * first, part.items * first, dropped=True)

    return tuple(map(observed, generation)), Screened(tuple(kept), tuple(ranked[len(kept) :]))


def _ranked(digests: Sequence[str], on_a_part: Mapping[str, Observed]) -> list[str]:
    return sorted(digests, key=lambda digest: -(on_a_part[digest].mean or 0.0))
