"""Which function runs a unit of which kind, and which one advances a stage."""

from collections.abc import Callable
from typing import Any

from glue.pipeline import baselines, builds, merge, mixture, publish, report, resolve, scoring, search, similarity
from glue.pipeline.context import Context
from glue.specs.build import BuildJobSpec
from glue.specs.kinds import parse_job
from glue.specs.plan import ADVANCE, UnitOutcome, UnitRequest

# Each takes the spec of its job's kind.
Run = Callable[[UnitRequest, Any, Context], UnitOutcome]
Advance = Callable[[UnitRequest, Any], UnitOutcome]

RUNS: dict[str, Run] = {
    "resolve.download": resolve.fetch,
    "resolve.data": resolve.fetch_data,
    "resolve.inspect": resolve.inspect,
    "similarity.compare": similarity.compare,
    "similarity.measure": similarity.measure,
    "score.candidate": scoring.score_candidate,
    "score.mixture": scoring.score_mixture,
    "merge.build": merge.build,
    "mixture.build": mixture.build,
    "report.write": report.write,
    "publish.push": publish.push,
    "build.write": builds.write,
    "build.train": builds.write,
    "build.score": builds.score_made,
    "build.report": builds.write_report,
}

ADVANCES: dict[str, Advance] = {
    "resolve": resolve.advance,
    "similarity": similarity.advance,
    "baselines": baselines.advance,
    "search": search.advance,
    "merge": merge.advance,
    "mixture": mixture.advance,
    "report": report.advance,
    "publish": publish.advance,
    "build": builds.advance_build,
}

# What a job that builds one model does in its own way.
BUILD_RUNS: dict[str, Run] = {"score.candidate": builds.score_input}
BUILD_ADVANCES: dict[str, Advance] = {"resolve": builds.advance_resolve, "report": builds.advance_report}


def run(request: UnitRequest, context: Context) -> UnitOutcome:
    """Run one unit to its end.

    Raises:
        GlueError: with the reason and the fault, to be recorded with the unit.
    """
    spec = parse_job(request.spec)
    builds_one = isinstance(spec, BuildJobSpec)
    if request.kind == ADVANCE:
        return (ADVANCES | (BUILD_ADVANCES if builds_one else {}))[request.stage](request, spec)
    return (RUNS | (BUILD_RUNS if builds_one else {}))[request.kind](request, spec, context)
