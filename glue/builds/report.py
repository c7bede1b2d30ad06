"""The report and the card of a build: what it was made of, how, and what it scored. Pure; knows no folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glue.builds.kinds import with_models
from glue.builds.texts import named_texts
from glue.evaluation.statistics import paired_difference
from glue.publishing.card import NO_NAME, TEMPLATES, licence_metadata, parts_of, result_metadata, yaml_text
from glue.publishing.provenance import inputs_of, licence_of, source_of, suite_of
from glue.publishing.report import POINT_DIGITS, POINTS, score_json
from glue.specs.build import BuildJobSpec
from glue.specs.digests import canonical_json
from glue.specs.results import ResolveResult, SuiteScore

_TAGS = {"merge": ["merge"], "mixture": ["merge", "mixture-of-experts"], "stack": ["merge"]}


@dataclass(frozen=True)
class BuildEvidence:
    """What is known of a finished build. `scores` are those on the report suite by model, the result's under the kind.

    `custom_code` tells whether the folder has a modelling file of ours.
    """

    spec: BuildJobSpec
    resolved: ResolveResult
    notes: tuple[str, ...]
    custom_code: bool
    scores: Mapping[str, SuiteScore]
    versions: Mapping[str, str]


def build_report(evidence: BuildEvidence) -> dict[str, Any]:
    """The whole report as JSON data, in the form of a model_glue job's where both say the same."""
    spec = evidence.spec
    return {
        "object": "report",
        "kind": spec.kind,
        "seed": spec.seed,
        "artifact": spec.kind,
        "recommended": None,
        "custom_code": evidence.custom_code,
        "inputs": inputs_of(spec, evidence.resolved),
        "licence": licence_of(spec),
        "repository": spec.publish.repo if spec.publish else None,
        "job": _job(spec),
        "versions": dict(evidence.versions),
        **_compared(evidence),
    }


def build_card(report: dict[str, Any]) -> str:
    """The README.md of a build's artifact, from its report."""
    rows = report["models"]
    return TEMPLATES.get_template("build_card.md.jinja").render(
        report
        | {
            "metadata": yaml_text(_metadata(report)),
            "tasks": [task["task"] for task in rows[0]["report"]["tasks"]] if rows else [],
            "place": report["repository"] or NO_NAME,
            "custom": report["custom_code"],
            "recipe": yaml_text(report["job"]),
        }
    )


def _compared(evidence: BuildEvidence) -> dict[str, Any]:
    """The rows of the table, the best of the models put in, and what was gained over it."""
    warnings = list(evidence.notes)
    inputs = [model.name for model in evidence.spec.models]
    if not evidence.scores:
        gains = {"best_single": None, "gain_over_best_single": None, "gain_over_best_single_stderr": None}
        return gains | {"warnings": warnings, "models": []}
    best = max(inputs, key=lambda name: evidence.scores[name].mean)
    rows = [_row(name, name, "input", best, evidence) for name in inputs]
    made = _row(evidence.spec.kind, evidence.spec.kind, evidence.spec.kind, best, evidence)
    gain, stderr = made["gain_over_best_single"], made["gain_over_best_single_stderr"]
    if gain < -2 * stderr:
        warnings.append("On the report suite the result is worse than the best of the models that it was made of.")
    return {
        "best_single": best,
        "gain_over_best_single": gain,
        "gain_over_best_single_stderr": stderr,
        "warnings": warnings,
        "models": [*rows, made],
    }


def _row(name: str, key: str, role: str, best: str, evidence: BuildEvidence) -> dict[str, Any]:
    score = evidence.scores[key]
    gain, stderr = paired_difference(score, evidence.scores[best])
    return {
        "name": name,
        "role": role,
        "report": score_json(score),
        "gain_over_best_single": round(gain * POINTS, POINT_DIGITS),
        "gain_over_best_single_stderr": round(stderr * POINTS, POINT_DIGITS),
    }


def _job(spec: BuildJobSpec) -> dict[str, Any]:
    """The job as it would be submitted again; models by their repositories or names, task folders by their commit."""
    sources = {text: source_of(spec.model(name)) for text, name in spec.references.items()}
    parts = {part: sources[text].split("+")[place] for text in sources for place, part in enumerate(_parts(text))}
    known = parts | sources
    config = named_texts(with_models(spec.config, lambda pointer, text: known.get(text, text)), spec.texts)
    report = {"report": suite_of(spec, "report")} if spec.report else {}
    settings = {"seed": spec.seed, "shard_bytes": spec.shard_bytes, "verify": spec.verify}
    # A database keeps no order of keys, and the card shows one.
    return {"kind": spec.kind, "config": json.loads(canonical_json(config)), **settings, **report}


def _parts(text: str) -> list[str]:
    return text.split("+")


def _metadata(report: dict[str, Any]) -> dict[str, Any]:
    tags = ["model-glue", *_TAGS[report["kind"]], *(["custom_code"] if report["custom_code"] else [])]
    found: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": tags}
    found |= licence_metadata(report)
    repositories = [part["repository"] for part in parts_of(report) if part["repository"]]
    if repositories:
        found |= {"base_model": list(dict.fromkeys(repositories)), "base_model_relation": "merge"}
    made = next((row for row in report["models"] if row["name"] == report["artifact"]), None)
    if made is None:
        return found
    name = (report["repository"] or report["kind"]).rpartition("/")[2]
    return found | {"model-index": [{"name": name, "results": [result_metadata(t) for t in made["report"]["tasks"]]}]}
