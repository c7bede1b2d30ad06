"""Which function runs a unit of which kind, and which one advances a stage."""

from collections.abc import Callable

from glue.pipeline import baselines, merge, mixture, report, resolve, scoring, search, similarity
from glue.pipeline.context import Context
from glue.specs.job import JobSpec
from glue.specs.plan import ADVANCE, UnitOutcome, UnitRequest

Run = Callable[[UnitRequest, JobSpec, Context], UnitOutcome]
Advance = Callable[[UnitRequest, JobSpec], UnitOutcome]

RUNS: dict[str, Run] = {
    "resolve.inspect": resolve.inspect,
    "similarity.compare": similarity.compare,
    "similarity.measure": similarity.measure,
    "score.candidate": scoring.score_candidate,
    "score.mixture": scoring.score_mixture,
    "merge.build": merge.build,
    "mixture.build": mixture.build,
    "report.write": report.write,
}

ADVANCES: dict[str, Advance] = {
    "resolve": resolve.advance,
    "similarity": similarity.advance,
    "baselines": baselines.advance,
    "search": search.advance,
    "merge": merge.advance,
    "mixture": mixture.advance,
    "report": report.advance,
}


def run(request: UnitRequest, context: Context) -> UnitOutcome:
    """Run one unit to its end.

    Raises:
        GlueError: with the reason and the fault, to be recorded with the unit.
    """
    spec = JobSpec.parse(request.spec)
    if request.kind == ADVANCE:
        return ADVANCES[request.stage](request, spec)
    return RUNS[request.kind](request, spec, context)
