"""Scores that an owner need not compute twice: what a score depends on, as a key, and the records under it."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sqlalchemy.orm import Session

from glue.records.leases import Claim
from glue.records.scores import find_score, store_score
from glue.specs.build import BuildJobSpec
from glue.specs.digests import digest_of
from glue.specs.expression import expression_digest, parse_expression
from glue.specs.kinds import parse_job
from glue.specs.plan import UnitOutcome, UnitRequest
from glue.specs.publish import PublishJobSpec
from glue.specs.results import ResolveResult

SCORE_CANDIDATE = "score.candidate"

# What computes a score: another version of any of them may give another number.
_LIBRARIES = ("model-glue", "torch", "transformers", "tokenizers", "lm-eval", "numpy")


def find_cached(session: Session, claim: Claim, device: str) -> UnitOutcome | None:
    """The outcome of a unit that scores a candidate, if this owner has had the same score before."""
    key = score_key(claim.unit, device)
    score = find_score(session, claim.owner, key) if key else None
    if score is None:
        return None
    payload = claim.unit.payload
    return UnitOutcome({"name": payload["name"], "expression": payload["expression"], "score": score, "cache": "hit"})


def keep_score(session: Session, claim: Claim, outcome: UnitOutcome, device: str) -> None:
    """Store what the unit scored, before its completion in the same transaction; other units leave nothing.

    Raises:
        LeaseLost: the lease is not held.
    """
    key = score_key(claim.unit, device)
    # With notes it was made otherwise than the suite says; a later job would take it for the suite's own.
    if key and not outcome.result.keys() & {"cache", "notes"}:
        store_score(session, claim.owner, key, outcome.result["score"], claim.token)


def score_key(unit: UnitRequest, device: str) -> str | None:
    """The digest of all that the score of this candidate depends on; none if the unit scores no candidate.

    Models appear by content, never by name. Batch, threads and dtype are part of the suite; where its tasks lie is
    not, but what they hold is.
    """
    contents = _contents(unit)
    if unit.kind != SCORE_CANDIDATE or contents is None:
        return None
    spec, suite_name = parse_job(unit.spec), unit.payload["suite"]
    assert not isinstance(spec, PublishJobSpec)
    if isinstance(spec, BuildJobSpec) and spec.suite(suite_name).chat_template:
        # Rendered with the template of what was built, which is none of the contents below.
        return None
    suite = spec.suite(suite_name).as_json()
    data = [[each.task, each.repo, each.commit] for each in spec.suite_data.get(suite_name, ())]
    return digest_of(
        {
            "expression": expression_digest(parse_expression(unit.payload["expression"]), contents),
            "suite": {**suite, "include_path": spec.suite_commits.get(suite_name)},
            **({"share": unit.payload["share"]} if "share" in unit.payload else {}),
            **({"data": data} if data else {}),
            **_left_out(spec, suite_name),
            "device": device,
            "libraries": _versions(),
        }
    )


def _left_out(spec: Any, suite_name: str) -> dict[str, Any]:
    """What decides which items the suite lacks; only jobs with a proxy leave something out."""
    if suite_name != "report" or not hasattr(spec, "proxy") or not spec.report.leaves_out_the_proxy:
        return {}
    data = [[each.task, each.repo, each.commit] for each in spec.suite_data.get("proxy", ())]
    return {"without": [spec.proxy.as_json() | {"include_path": spec.suite_commits.get("proxy")}, data]}


def _contents(unit: UnitRequest) -> dict[str, str] | None:
    resolved = [outcome.result for outcome in unit.outcomes if outcome.name == "resolve"]
    return ResolveResult.parse(resolved[0]).contents() if resolved else None


@cache
def _versions() -> dict[str, Any]:
    return {name: _version(name) for name in _LIBRARIES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
