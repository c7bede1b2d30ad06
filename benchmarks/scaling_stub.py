"""A pipeline whose candidates sleep: everything of a search but the models. No torch.

For `GLUE_ENGINE_RUNNER=benchmarks.scaling_stub:run`. The search itself is the real one.
"""

import time
from typing import Any

from glue.pipeline import search
from glue.pipeline.context import Context
from glue.specs.kinds import parse_job
from glue.specs.plan import ADVANCE, UnitOutcome, UnitRequest
from glue.specs.results import (
    BaselinesResult,
    Family,
    InspectedModel,
    ResolveResult,
    ScoredCandidate,
    SimilarityResult,
    SuiteScore,
)

MEMBERS = ("a", "b", "c", "d")
WARM_UP = "bench.warm_up"


def run(request: UnitRequest, context: Context) -> UnitOutcome:
    """Run one unit."""
    if request.kind == ADVANCE:
        return _advance(request)
    if request.kind == WARM_UP or request.stage == "search":
        time.sleep(float(request.spec["proxy"]["tasks"][0]["weight"]))
    if request.kind != "score.candidate":
        return UnitOutcome({})
    return UnitOutcome({key: request.payload[key] for key in ("name", "expression")} | {"score": _score(request)})


def _advance(request: UnitRequest) -> UnitOutcome:
    if request.stage == "search":
        return search.advance(request, parse_job(request.spec))  # type: ignore[arg-type]
    if request.stage == "resolve":
        return UnitOutcome(_resolved(), finished=True)
    if request.stage == "similarity":
        families = (Family(name="one", members=MEMBERS),)
        return UnitOutcome(SimilarityResult(matrices=(), families=families).as_json(), finished=True)
    scores = tuple(
        ScoredCandidate.parse({key: unit.result[key] for key in ("name", "expression", "score")})
        for unit in request.units
        if unit.result
    )
    return UnitOutcome(BaselinesResult(scores=scores).as_json(), finished=True)


def _score(request: UnitRequest) -> dict[str, Any]:
    mean = round(0.5 + 0.001 * (sum(map(ord, str(request.payload["expression"]))) % 97), 6)
    return SuiteScore(suite="0" * 64, mean=mean, stderr=0.01, tasks=()).as_json()


def _resolved() -> dict[str, Any]:
    facts = {"signature": "s", "tokenizer": "t", "architecture": "A", "dtype": "float32", "parameters": 1}
    sizes = {"hidden_size": 1, "layers": 1, "vocabulary": 1, "tied": False}
    models = tuple(InspectedModel.parse({"name": name, "content": name * 64, **facts, **sizes}) for name in MEMBERS)
    return ResolveResult(models=models, groups=(MEMBERS,)).as_json()
