"""Jobs that build one model: the model, scores beside those of the models put in, and the artifact with its card."""

import shutil
from collections.abc import Mapping
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from glue.builds.report import BuildEvidence, build_card, build_report
from glue.builds.write import write_build
from glue.checkpoints.manifest import publish_folder
from glue.evaluation.scorer import Scorer
from glue.evaluation.suite import Suite, load_suite
from glue.merging.engine import merge_into
from glue.mixture.load import load_model
from glue.pipeline.baselines import scored_candidate
from glue.pipeline.context import Context
from glue.pipeline.heard import SCORING, heard
from glue.pipeline.models import DTYPES, checkpoints, load_tokenizer
from glue.pipeline.outcomes import Outcomes
from glue.pipeline.report import VERSIONED, link_or_copy
from glue.pipeline.scoring import check_unchanged
from glue.plans.model_glue import inspect_units
from glue.plans.units import unit
from glue.references.headers import folder_tensors
from glue.specs.build import BuildJobSpec
from glue.specs.digests import canonical_json
from glue.specs.expression import Candidate, Member, members_of
from glue.specs.plan import ArtifactPlan, FinishedUnit, UnitOutcome, UnitRequest
from glue.specs.results import BuildResult, InspectedModel, ResolveResult, ScoredCandidate, SuiteScore

REPORT = "report"


def advance_resolve(request: UnitRequest, spec: BuildJobSpec) -> UnitOutcome:
    """Look into what was fetched. Which models fit together is for the build to say."""
    inspected = [finished for finished in request.units if finished.kind == "resolve.inspect"]
    if not inspected:
        return UnitOutcome(units=inspect_units(spec))
    models = tuple(InspectedModel.parse(finished.result) for finished in inspected)
    return UnitOutcome(ResolveResult(models=models, groups=()).as_json(), finished=True)


def write(request: UnitRequest, spec: BuildJobSpec, context: Context) -> UnitOutcome:
    """Build the model; where no report follows, the artifact with its card is made of it at once."""
    folder = context.work / "model"
    notes = write_build(spec, folder, request.token, context.progress, context.device)
    parameters = sum(prod(info.shape) for info in folder_tensors(folder).values())
    if spec.report is None:
        return _finished(folder, notes, parameters, {}, request, spec, context)
    manifest, location = publish_folder(folder, context.artifacts)
    result = BuildResult(digest=manifest.digest, location=location, parameters=parameters, remarks=notes)
    return UnitOutcome(result.as_json(), ArtifactPlan(spec.kind, manifest.digest, location, manifest.as_json()))


def advance_build(request: UnitRequest, spec: BuildJobSpec) -> UnitOutcome:
    """The one unit's result is the stage's."""
    (built,) = request.units
    return UnitOutcome(BuildResult.parse(built.result).as_json(), finished=True)


def score_input(request: UnitRequest, spec: BuildJobSpec, context: Context) -> UnitOutcome:
    """Score one of the models put in, with its own tokenizer."""
    candidate = Candidate.parse({key: request.payload[key] for key in ("name", "expression")})
    (name,) = members_of(candidate.expression)
    folders = spec.model(name).folders()
    context.progress(0.0, f"loading {name}")
    model = _loaded(Path(folders[0]), spec, context)
    if len(folders) > 1:
        merge_into(Member(name=name), checkpoints(spec, context), model)
    context.progress(SCORING, f"scoring {name}")
    score, notes = _score(model, load_tokenizer(Path(folders[0])), request, spec, context)
    scored = ScoredCandidate(name=name, expression=candidate.expression, score=score)
    return UnitOutcome(scored.as_json() | notes)


def score_made(request: UnitRequest, spec: BuildJobSpec, context: Context) -> UnitOutcome:
    """Score the build from its finished folder."""
    folder = context.artifacts / str(request.payload["location"])
    context.progress(0.0, f"loading the {spec.kind}")
    model = _loaded(folder, spec, context)
    context.progress(SCORING, f"scoring the {spec.kind}")
    score, notes = _score(model, load_tokenizer(folder), request, spec, context)
    return UnitOutcome({"score": score.as_json()} | notes)


def advance_report(request: UnitRequest, spec: BuildJobSpec) -> UnitOutcome:
    """When everything is scored, have the artifact made; when it is made, finish."""
    written = [finished for finished in request.units if finished.kind == "build.report"]
    if written:
        return UnitOutcome(BuildResult.parse(written[0].result).as_json(), finished=True)
    scores = dict(_scored(finished, spec) for finished in request.units)
    return UnitOutcome(units=(unit("build.report", {"scores": scores}),))


def write_report(request: UnitRequest, spec: BuildJobSpec, context: Context) -> UnitOutcome:
    """Put model, report and card into one folder and move it into the artifacts."""
    built = Outcomes(request.outcomes).build()
    scores = {name: SuiteScore.parse(score) for name, score in request.payload["scores"].items()}
    folder = context.artifacts / built.location
    return _finished(folder, built.remarks, built.parameters, scores, request, spec, context)


def _scored(finished: FinishedUnit, spec: BuildJobSpec) -> tuple[str, dict[str, Any]]:
    assert finished.result is not None
    if finished.kind == "build.score":
        return spec.kind, finished.result["score"]
    scored = scored_candidate(finished.result)
    return scored.name, scored.score.as_json()


def _finished(
    model: Path,
    notes: tuple[str, ...],
    parameters: int,
    scores: Mapping[str, SuiteScore],
    request: UnitRequest,
    spec: BuildJobSpec,
    context: Context,
) -> UnitOutcome:
    evidence = BuildEvidence(
        spec=spec,
        resolved=Outcomes(request.outcomes).resolve(),
        notes=notes,
        custom_code=any(model.glob("*.py")),
        scores=scores,
        versions={name: version(name) for name in VERSIONED},
    )
    report = build_report(evidence)
    folder = context.work / f"artifact.{request.token}"
    context.progress(1.0, "collecting the artifact")
    shutil.copytree(model, folder, copy_function=link_or_copy)
    # A copied file may be one with the artifact that it came from.
    for name, text in (("report.json", canonical_json(report) + "\n"), ("README.md", build_card(report))):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    manifest, location = publish_folder(folder, context.artifacts)
    result = BuildResult(
        digest=manifest.digest,
        location=location,
        parameters=parameters,
        remarks=notes,
        best_single=report["best_single"],
        gain_over_best_single=report["gain_over_best_single"],
        gain_over_best_single_stderr=report["gain_over_best_single_stderr"],
    )
    return UnitOutcome(result.as_json(), ArtifactPlan("model", manifest.digest, location, manifest.as_json()))


def _loaded(folder: Path, spec: BuildJobSpec, context: Context) -> PreTrainedModel:
    dtype = spec.suite(REPORT).dtype
    # Never the one of a unit before: an adapter may have been merged into it.
    context.cache.pop("model", None)
    key = (str(folder), dtype, context.device)
    return context.keep("model", key, lambda: load_model(folder, DTYPES[dtype], context.device))


def _score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: UnitRequest,
    spec: BuildJobSpec,
    context: Context,
) -> tuple[SuiteScore, dict[str, dict[str, str]]]:
    """The score, and notes on what was done differently from what the suite says."""
    key = (spec.suite(REPORT), Outcomes(request.outcomes).build().digest)
    suite = context.keep("build suite", key, lambda: _suite(request, spec, context))
    scorer = Scorer(suite, context.device)
    with heard(model, context, SCORING):
        score = scorer.score(model, tokenizer)
    return score, {"notes": {"degraded": scorer.degraded}} if scorer.degraded else {}


def _suite(request: UnitRequest, spec: BuildJobSpec, context: Context) -> Suite:
    """The suite, where it asks for a chat template in that of the result: all models are to answer the same texts."""
    check_unchanged(REPORT, spec)
    chats = spec.suite(REPORT).chat_template
    tokenizer = load_tokenizer(context.artifacts / Outcomes(request.outcomes).build().location) if chats else None
    return load_suite(spec.suite(REPORT), tokenizer, spec.suite_data.get(REPORT, ()))
