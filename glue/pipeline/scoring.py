"""Units that score: a candidate merged straight into a resident model, or the mixture from its folder."""

from pathlib import Path
from time import monotonic

from transformers import PreTrainedModel

from glue.evaluation.scorer import Scorer
from glue.evaluation.suite import Suite, check_disjoint, load_suite
from glue.merging.engine import merge_into
from glue.mixture.load import load_model
from glue.pipeline.context import Context
from glue.pipeline.heard import SCORING, heard
from glue.pipeline.models import DTYPES, checkpoints, mixture_member, resident_model, tokenizer_of
from glue.pipeline.outcomes import Outcomes
from glue.references.folders import folder_commit
from glue.specs.errors import InvalidInputError, Problem
from glue.specs.expression import Candidate, members_of
from glue.specs.job import JobSpec
from glue.specs.kinds import ModelJobSpec
from glue.specs.plan import UnitOutcome, UnitRequest
from glue.specs.results import ScoredCandidate, SuiteScore


def score_candidate(request: UnitRequest, spec: JobSpec, context: Context) -> UnitOutcome:
    """Merge the candidate into the resident model of its signature and score it."""
    payload = request.payload
    candidate = Candidate.parse({"name": payload["name"], "expression": payload["expression"]})
    suite_spec = spec.suite(payload["suite"])
    context.progress(0.0, f"merging {candidate.name}")
    started = monotonic()
    model = resident_model(candidate.expression, suite_spec.dtype, spec, Outcomes(request.outcomes), context)
    merge_into(candidate.expression, checkpoints(spec, context), model)
    merged = monotonic()
    context.progress(SCORING, f"scoring {candidate.name}")
    score, notes = _score(model, members_of(candidate.expression)[0], request, spec, context, payload.get("share"))
    scored = ScoredCandidate(name=candidate.name, expression=candidate.expression, score=score)
    seconds = {"merge_seconds": merged - started, "score_seconds": monotonic() - merged}
    return UnitOutcome(scored.as_json() | seconds | notes)


def score_mixture(request: UnitRequest, spec: JobSpec, context: Context) -> UnitOutcome:
    """Score the mixture from its finished folder."""
    suite_spec = spec.suite(request.payload["suite"])
    folder = context.artifacts / request.payload["location"]
    key = (str(folder), suite_spec.dtype, context.device)
    context.progress(0.0, "loading the mixture")
    model = context.keep("model", key, lambda: load_model(folder, DTYPES[suite_spec.dtype], context.device))
    context.progress(SCORING, "scoring the mixture")
    score, notes = _score(model, mixture_member(spec, Outcomes(request.outcomes)), request, spec, context)
    return UnitOutcome({"score": score.as_json()} | notes)


def suites(spec: JobSpec, outcomes: Outcomes, context: Context) -> dict[str, Suite]:
    """Both suites, built once for the engine's life, and shown to share no item.

    Raises:
        EvaluationError: a task cannot be built, or the suites share an item.
    """
    return context.keep("suites", (spec.proxy, spec.report), lambda: _suites(spec, outcomes, context))


def _suites(spec: JobSpec, outcomes: Outcomes, context: Context) -> dict[str, Suite]:
    for name in ("proxy", "report"):
        check_unchanged(name, spec)
    # It renders chats for the router, and for the families that share it.
    tokenizer = tokenizer_of(mixture_member(spec, outcomes), spec, outcomes, context)
    proxy, report = (
        load_suite(spec.suite(name), tokenizer, spec.suite_data.get(name, ())) for name in ("proxy", "report")
    )
    if spec.report.leaves_out_the_proxy:
        report = report.without(frozenset(proxy.item_ids))
    check_disjoint(proxy, report)
    return {"proxy": proxy, "report": report}


def check_unchanged(name: str, spec: ModelJobSpec) -> None:
    """Check that a suite's task folder is what it was at submission.

    Raises:
        InvalidInputError: it is not.
    """
    folder, commit = spec.suite(name).include_path, spec.suite_commits.get(name)
    if folder is not None and commit is not None and folder_commit(Path(folder)) != commit:
        detail = f"the task folder of the {name} suite changed since the job was submitted"
        raise InvalidInputError(
            detail, [Problem(f"/{name}/include_path", "tasks_changed", detail, "submit the job again")]
        )


def _scorer(name: str, suite: Suite, context: Context) -> Scorer:
    # What a shorter type does to items is told once, of the models that are reported.
    return Scorer(suite, context.device, compare=name == "report")


def _score(
    model: PreTrainedModel,
    entry: str,
    request: UnitRequest,
    spec: JobSpec,
    context: Context,
    share: float | None = None,
) -> tuple[SuiteScore, dict[str, dict[str, str]]]:
    """The score with the tokenizer of that entry, and notes on what was done differently from what the suite says."""
    name, outcomes = request.payload["suite"], Outcomes(request.outcomes)
    whole = suites(spec, outcomes, context)[name]
    suite = context.keep(f"part of {name}", (whole.digest, share), lambda: whole.part(share)) if share else whole
    kind = f"scorer {name} {share}" if share else f"scorer {name}"
    scorer = context.keep(kind, (suite.digest, context.device), lambda: _scorer(name, suite, context))
    with heard(model, context, SCORING):
        score = scorer.score(model, tokenizer_of(entry, spec, outcomes, context))
    return score, {"notes": {"degraded": scorer.degraded}} if scorer.degraded else {}
