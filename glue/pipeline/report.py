"""Stage `report`: everything on the report suite, then the finished artifact with its evidence."""

import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from glue.checkpoints.manifest import publish_folder
from glue.pipeline.baselines import scored_candidate
from glue.pipeline.context import Context
from glue.pipeline.outcomes import Outcomes
from glue.plans.units import unit
from glue.publishing.card import model_card
from glue.publishing.plots import draw_plots
from glue.publishing.report import MIXTURE, Evidence, build_report
from glue.specs.digests import canonical_json
from glue.specs.job import JobSpec
from glue.specs.plan import ArtifactPlan, FinishedUnit, UnitOutcome, UnitRequest
from glue.specs.results import ReportResult, SuiteScore

VERSIONED = ("torch", "transformers", "lm-eval", "model-glue")


def advance(request: UnitRequest, spec: JobSpec) -> UnitOutcome:
    """When everything is scored, have the report written; when it is written, finish."""
    written = [finished for finished in request.units if finished.kind == "report.write"]
    if written:
        assert written[0].result is not None
        return UnitOutcome(ReportResult.parse(written[0].result).as_json(), finished=True)
    scores = dict(_score(finished) for finished in request.units if finished.kind.startswith("score."))
    return UnitOutcome(units=(unit("report.write", {"scores": scores}),))


def _score(finished: FinishedUnit) -> tuple[str, dict[str, Any]]:
    assert finished.result is not None
    if finished.kind == "score.mixture":
        return MIXTURE, finished.result["score"]
    scored = scored_candidate(finished.result)
    return scored.name, scored.score.as_json()


def write(request: UnitRequest, spec: JobSpec, context: Context) -> UnitOutcome:
    """Put model, report, plots and card into one folder and move it into the artifacts."""
    outcomes = Outcomes(request.outcomes)
    report = build_report(_evidence(request, spec, outcomes))
    folder = context.work / f"artifact.{request.token}"
    context.progress(0.1, "collecting the model")
    shutil.copytree(context.artifacts / _location(report, outcomes), folder, copy_function=link_or_copy)
    context.progress(0.5, "drawing the plots")
    draw_plots(report, folder / "plots")
    (folder / "report.json").write_text(canonical_json(report) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(report), encoding="utf-8")
    context.progress(0.8, "hashing the artifact")
    manifest, location = publish_folder(folder, context.artifacts)
    result = ReportResult(
        digest=manifest.digest,
        location=location,
        recommended=report["recommended"],
        best_single=report["best_single"],
        gain_over_best_single=report["gain_over_best_single"],
        gain_over_best_single_stderr=report["gain_over_best_single_stderr"],
    )
    return UnitOutcome(result.as_json(), ArtifactPlan("model", manifest.digest, location, manifest.as_json()))


def _evidence(request: UnitRequest, spec: JobSpec, outcomes: Outcomes) -> Evidence:
    return Evidence(
        job=spec,
        resolved=outcomes.resolve(),
        similarity=outcomes.similarity(),
        baselines=outcomes.baselines(),
        searches=outcomes.searches(),
        merges=outcomes.merges(),
        mixture=outcomes.mixture(),
        report_scores={name: SuiteScore.parse(score) for name, score in request.payload["scores"].items()},
        versions={name: version(name) for name in VERSIONED},
    )


def _location(report: dict[str, Any], outcomes: Outcomes) -> str:
    """The folder of the model that the artifact holds; a member's own copy is its family's merge of one."""
    mixture = outcomes.mixture().location
    if mixture is not None:
        return mixture
    return next(merge.location for merge in outcomes.merges() if merge.name == report["artifact"])


def link_or_copy(source: str, target: str) -> str:
    """A second name for a finished file, or where there can be none a copy; for `shutil.copytree`."""
    # Model files are immutable once in the artifacts, so a second name costs no disk.
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return str(Path(target))
