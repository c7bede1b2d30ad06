"""Where a result comes from, in a form that says the same on every machine: no path, no time, no name of a host."""

from typing import Any

from glue.references.licences import combine, licences_of
from glue.specs.job import JobSpec, ResolvedModel
from glue.specs.kinds import ModelJobSpec
from glue.specs.results import ResolveResult
from glue.specs.zoo import BASE

_SETTINGS = ("clustering", "search", "mixture", "output")


def inputs_of(job: ModelJobSpec, resolved: ResolveResult) -> list[dict[str, Any]]:
    """Every model of the job as it was found, with its commit, and of a model of the Hub its repository.

    Of an adapter these are the model's that it lies on, and its own are in `adapter`.
    """
    return [
        resolved.model(model.name).as_json()
        | {"commit": model.commit, "repository": model.repo, "licence": model.licence, "base": model.name == BASE}
        | _adapter_of(model)
        for model in job.models
    ]


def _adapter_of(model: ResolvedModel) -> dict[str, Any]:
    if model.adapter is None:
        return {}
    adapter = model.adapter
    return {"adapter": {"commit": adapter.commit, "repository": adapter.repo, "licence": adapter.licence}}


def licence_of(job: ModelJobSpec) -> dict[str, Any]:
    """What follows from the entries' licences; the job may name another, which its owner then answers for."""
    combined = combine(licences_of(job.models))
    chosen = job.publish.licence if job.publish else None
    return {
        "identifier": chosen or combined.identifier,
        "chosen": chosen is not None,
        "notes": [*combined.conflicts, *combined.notes],
    }


def source_of(model: ResolvedModel) -> str:
    """How a person elsewhere finds the model: its repository at a commit, or its name alone."""
    whole = f"{model.repo}@{model.commit}" if model.repo else model.name
    if model.adapter is None:
        return whole
    adapter = model.adapter
    return f"{whole}+{adapter.repo}@{adapter.commit}" if adapter.repo else f"{whole}+{model.name}"


def job_of(job: JobSpec) -> dict[str, Any]:
    """The job as it would be submitted again, with the zoo beside it; task folders are named by their commit."""
    zoo: dict[str, Any] = {
        "name": job.zoo.name,
        "members": [
            {"name": model.name, "source": source_of(model), "commit": model.commit}
            for model in job.models
            if model.name != BASE
        ],
    }
    base = next((model for model in job.models if model.name == BASE), None)
    if base is not None:
        zoo["base"] = {"source": source_of(base), "commit": base.commit}
    plain = job.as_json()
    settings = {name: plain[name] for name in _SETTINGS}
    suites = {name: suite_of(job, name) for name in ("proxy", "report")}
    return {"zoo": zoo, "job": {"kind": job.kind, "zoo": job.zoo.name, "seed": job.seed, **settings, **suites}}


def suite_of(job: ModelJobSpec, name: str) -> dict[str, Any]:
    """A suite of the job; its task folder and data sets by their commits."""
    commit = job.suite_commits.get(name)
    data = {each.repo: each.commit for each in job.suite_data.get(name, ())}
    kept = {key: value for key, value in job.suite(name).as_json().items() if key != "include_path"}
    return kept | ({"tasks_commit": commit} if commit else {}) | ({"data_sets": data} if data else {})
