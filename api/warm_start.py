"""A job that starts from an earlier one: what that one found is pinned in the stored spec."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from glue.records.earlier import refuse_members, scored_trials
from glue.specs.expression import Candidate, expression_digest, members_of
from glue.specs.job import JobRequest, JobSpec, WarmStart
from glue.specs.kinds import AnyJobRequest, AnyJobSpec
from glue.specs.zoo import BASE

# Enough for every family to find some of its own among them.
PINNED = 64


def earlier_trials(session: Session, owner: str, request: AnyJobRequest) -> list[dict[str, Any]]:
    """What the job that the request starts from has scored, the best first; nothing if it starts from none.

    Raises:
        InvalidInputError: the owner has no such job, it has not ended, or it has no scored candidate.
    """
    if not isinstance(request, JobRequest) or request.search.warm_start is None:
        return []
    return scored_trials(session, owner, request.search.warm_start)


def pinned(spec: AnyJobSpec, trials: Sequence[dict[str, Any]]) -> AnyJobSpec:
    """The spec with the best of these trials that its zoo can build; it speaks of the earlier job no more.

    Raises:
        InvalidInputError: the zoo can build none of them.
    """
    if not trials or not isinstance(spec, JobSpec):
        return spec
    earlier = str(spec.search.warm_start)
    names = {*spec.zoo.member_names(), *([BASE] if spec.zoo.base else [])}
    found: dict[str, Candidate] = {}
    for trial in trials:
        candidate = Candidate.parse({key: trial[key] for key in ("name", "expression")})
        if set(members_of(candidate.expression)) <= names:
            found.setdefault(expression_digest(candidate.expression), candidate)
    if not found:
        raise refuse_members(earlier)
    search = spec.search.model_copy(update={"warm_start": None})
    warm = WarmStart(job=earlier, candidates=tuple(found.values())[:PINNED])
    return spec.model_copy(update={"search": search, "warm_start": warm})
