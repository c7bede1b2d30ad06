"""The report as plain data: every model on items that the search never saw. Pure; knows no folder and no clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from glue.evaluation.statistics import paired_difference
from glue.publishing.provenance import inputs_of, job_of, licence_of
from glue.specs.expression import Merge, weights_of
from glue.specs.job import JobSpec
from glue.specs.results import (
    BaselinesResult,
    MergeResult,
    MixtureResult,
    ResolveResult,
    SearchResult,
    SimilarityResult,
    SuiteScore,
)
from glue.specs.zoo import BASE

MIXTURE = "mixture"
POINTS = 100
POINT_DIGITS = 4


@dataclass(frozen=True)
class Evidence:
    """Everything that the report speaks of. `report_scores` maps a model's name to its report score."""

    job: JobSpec
    resolved: ResolveResult
    similarity: SimilarityResult
    baselines: BaselinesResult
    searches: tuple[SearchResult, ...]
    merges: tuple[MergeResult, ...]
    mixture: MixtureResult
    report_scores: Mapping[str, SuiteScore]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class ReportedModel:
    """One row of the table."""

    name: str
    role: Literal["member", "merge", "mixture"]
    family: str
    proxy: SuiteScore
    report: SuiteScore


def reported_models(evidence: Evidence) -> tuple[ReportedModel, ...]:
    """The rows in order: members as in the zoo, families' merges, the mixture."""
    rows = [_member_row(evidence, name) for name in evidence.job.zoo.member_names()]
    for merge, search in zip(evidence.merges, evidence.searches, strict=True):
        if isinstance(merge.expression, Merge):
            report = evidence.report_scores[merge.name]
            rows.append(ReportedModel(merge.name, "merge", merge.family, search.winner.score, report))
    if evidence.mixture.score is not None:
        report = evidence.report_scores[MIXTURE]
        rows.append(ReportedModel(MIXTURE, "mixture", "", evidence.mixture.score, report))
    return tuple(rows)


def _member_row(evidence: Evidence, name: str) -> ReportedModel:
    family = next(family.name for family in evidence.similarity.families if name in family.members)
    scores = evidence.baselines.of(name).score, evidence.report_scores[name]
    return ReportedModel(name, "member", family, *scores)


def recommended(rows: Sequence[ReportedModel], artifact: ReportedModel) -> ReportedModel:
    """The best on the proxy suite: the report suite chooses nothing. Of equals the artifact, then the simpler."""
    return max(rows, key=lambda row: (row.proxy.mean, row.name == artifact.name))


def best_single(rows: Sequence[ReportedModel]) -> ReportedModel:
    """The best member on the report suite: the hardest one to beat, chosen against ourselves."""
    return max((row for row in rows if row.role == "member"), key=lambda row: row.report.mean)


def delivered(rows: Sequence[ReportedModel], merges: Sequence[MergeResult]) -> ReportedModel:
    """The model that the artifact holds: the mixture, or without one the best family's model on the proxy suite."""
    names = {merge.name for merge in merges}
    mixtures = [row for row in rows if row.role == "mixture"]
    return max(mixtures or [row for row in rows if row.name in names], key=lambda row: row.proxy.mean)


def build_report(evidence: Evidence) -> dict[str, Any]:
    """The whole report as JSON data. Gains and scores named `gain…` are in points, means are from 0 to 1."""
    rows = reported_models(evidence)
    single, artifact = best_single(rows), delivered(rows, evidence.merges)
    best = recommended(rows, artifact)
    gain, gain_stderr = paired_difference(artifact.report, single.report)
    return {
        "object": "report",
        "zoo": evidence.job.zoo.name,
        "seed": evidence.job.seed,
        "artifact": artifact.name,
        "recommended": best.name,
        "best_single": single.name,
        "gain_over_best_single": round(gain * POINTS, POINT_DIGITS),
        "gain_over_best_single_stderr": round(gain_stderr * POINTS, POINT_DIGITS),
        "warnings": _warnings(evidence, artifact, best, gain, gain_stderr),
        "models": [_row_json(row, single) for row in rows],
        "inputs": inputs_of(evidence.job, evidence.resolved),
        "licence": licence_of(evidence.job),
        "repository": evidence.job.publish.repo if evidence.job.publish else None,
        "job": job_of(evidence.job),
        "families": [_family_json(evidence, index) for index in range(len(evidence.merges))],
        "similarity": [matrix.as_json() for matrix in evidence.similarity.matrices],
        "mixture": _mixture_json(evidence.mixture),
        "suites": {"proxy": rows[0].proxy.suite, "report": rows[0].report.suite},
        "versions": dict(evidence.versions),
    }


def _warnings(
    evidence: Evidence, artifact: ReportedModel, best: ReportedModel, gain: float, gain_stderr: float
) -> list[str]:
    warnings = [f"{note[0].upper()}{note[1:]}." for note in evidence.mixture.remarks]
    if best.name != artifact.name:
        warnings.append(
            f"On the proxy suite {best.name} ({best.proxy.mean:.4f}) is better than "
            f"{artifact.name} ({artifact.proxy.mean:.4f}), which this artifact holds."
        )
    if artifact.report.differing is not None:
        share = f"{100 * artifact.report.differing:.1f} %"
        warnings.append(
            f"Scored in {evidence.job.report.dtype}: {share} of the report's items come out otherwise in float32."
        )
    if gain < -2 * gain_stderr:
        warnings.append("On the report suite the artifact is worse than the best single model.")
    elif gain <= 2 * gain_stderr:
        warnings.append("The gain over the best single model is within two standard errors of zero.")
    if evidence.mixture.score is None and len(evidence.similarity.families) > 1:
        warnings.append(
            "No mixture was built: fewer than two families had an expert that was the best on enough items."
        )
    if others := _own_tokenizers(evidence):
        warnings.append(
            f"Experts with a tokenizer of their own: {', '.join(others)}. The mixture translates for them in "
            "generate(); its forward() refuses prompts that are routed to them."
        )
    return warnings


def _own_tokenizers(evidence: Evidence) -> list[str]:
    """The experts whose family reads another tokenizer than the mixture, which reads the base's."""
    read = evidence.resolved.model(BASE if evidence.job.zoo.base else evidence.job.zoo.member_names()[0]).tokenizer
    firsts = {each.name: evidence.similarity.family(each.family).members[0] for each in evidence.mixture.experts}
    return [name for name, member in firsts.items() if evidence.resolved.model(member).tokenizer != read]


def _row_json(row: ReportedModel, single: ReportedModel) -> dict[str, Any]:
    gain, gain_stderr = paired_difference(row.report, single.report)
    return {
        "name": row.name,
        "role": row.role,
        "family": row.family or None,
        "proxy": score_json(row.proxy),
        "report": score_json(row.report),
        "gain_over_best_single": round(gain * POINTS, POINT_DIGITS),
        "gain_over_best_single_stderr": round(gain_stderr * POINTS, POINT_DIGITS),
    }


def score_json(score: SuiteScore) -> dict[str, Any]:
    """A score without the items' own values."""
    tasks = [
        {
            "task": task.task,
            "metric": task.metric,
            "weight": task.weight,
            "mean": task.mean,
            "stderr": task.stderr,
            "items": len(task.values),
        }
        for task in score.tasks
    ]
    differing = {} if score.differing is None else {"differing_in_float32": score.differing}
    return {"mean": score.mean, "stderr": score.stderr, "tasks": tasks, **differing}


def _family_json(evidence: Evidence, index: int) -> dict[str, Any]:
    merge, search = evidence.merges[index], evidence.searches[index]
    return {
        "name": merge.family,
        "members": list(evidence.similarity.family(merge.family).members),
        "model": merge.name,
        "recipe": merge.expression.as_json(),
        "weights": weights_of(merge.expression),
        "rejected": [rejected.as_json() for rejected in search.rejected],
        "trials": [trial.as_json() for trial in search.trials],
        "halving": search.halving.as_json() if search.halving else None,
    }


def _mixture_json(mixture: MixtureResult) -> dict[str, Any]:
    return {
        "experts": [expert.as_json() for expert in mixture.experts],
        "left_out": [rejected.as_json() for rejected in mixture.left_out],
        "prototypes": mixture.prototypes,
        **({"stock": True} if mixture.stock else {}),
    }
