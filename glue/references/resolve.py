"""A job as submitted into the job as stored: references resolved and pinned, everything checked that headers tell.

Opens folders, and the Hub where it is handed one; never a database.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glue.references.findings import Findings
from glue.references.folders import read_config
from glue.references.headers import folder_tensors
from glue.references.hub_access import HubAccess
from glue.references.hub_datasets import DataSets
from glue.references.hub_target import check_target
from glue.references.licences import combine, licences_of
from glue.references.models import FoundModel, check_chats, check_tokenizers, find_models
from glue.references.reading import refusal
from glue.references.signature import differences, signature_parts
from glue.references.tasks import find_tasks
from glue.specs.errors import InvalidInputError, Problem
from glue.specs.job import JobRequest, JobSpec, ResolvedAdapter, ResolvedModel
from glue.specs.publish import PublishJobSpec, PublishRequest, PublishSpec
from glue.specs.search import DataFlow, takes_task_vectors
from glue.specs.zoo import ZooSpec


@dataclass(frozen=True)
class Examination:
    """What was found out about a request: its spec, unless something is wrong, and the models that can be used."""

    findings: Findings
    models: Sequence[FoundModel]
    spec: JobSpec | None


def resolve_job(
    request: JobRequest, zoo: ZooSpec, roots: Sequence[Path], seed_default: int, hub: HubAccess | None = None
) -> JobSpec:
    """The complete, immutable spec of a request: models and task folders at a commit, a seed always present.

    Pointers of problems about models speak of the zoo's file, all others of the job's. Without `hub` only local
    folders can be used, and nothing can be published.

    Raises:
        InvalidInputError: with every problem that was found, some of them in the request itself.
        IncompatibleModelsError: with every problem, all of them about models that cannot be used (together).
        HubUnavailableError: the Hub does not answer.
    """
    examination = examine_job(request, zoo, roots, seed_default, hub)
    examination.findings.raise_any()
    assert examination.spec is not None, "without a spec there is a problem"
    return examination.spec


def examine_job(
    request: JobRequest, zoo: ZooSpec, roots: Sequence[Path], seed_default: int, hub: HubAccess | None = None
) -> Examination:
    """As `resolve_job`, but what is wrong is handed over beside what can be used.

    Raises:
        HubUnavailableError: the Hub does not answer.
    """
    findings = Findings()
    models = find_models(zoo, roots, findings, hub)
    check_tokenizers(models, request, findings)
    check_chats(models, request, findings)
    _check_base(request, zoo, findings)
    _check_shared_layers(request, models, findings)
    data = DataSets(hub) if hub else None
    suites = {
        name: find_tasks(suite, f"/{name}", roots, findings, data)
        for name, suite in (("proxy", request.proxy), ("report", request.report))
    }
    if request.publish is not None:
        check_publish(request.publish, models, findings, hub)
    if findings.problems:
        return Examination(findings, models, None)
    spec = JobSpec(
        kind=request.kind,
        seed=seed_default if request.seed is None else request.seed,
        zoo=zoo,
        models=tuple(resolved_model(each) for each in models),
        clustering=request.clustering,
        search=request.search,
        mixture=request.mixture,
        output=request.output,
        proxy=suites["proxy"].spec,
        report=suites["report"].spec,
        suite_commits={name: suite.commit for name, suite in suites.items() if suite.commit is not None},
        suite_data={name: suite.data for name, suite in suites.items() if suite.data},
        publish=request.publish,
    )
    return Examination(findings, models, spec)


def resolved_model(found: FoundModel) -> ResolvedModel:
    """A model that was found, as a job stores it."""
    adapter = None
    if found.adapter is not None:
        part = found.adapter
        adapter = ResolvedAdapter(path=str(part.folder), commit=part.commit, repo=part.repo, licence=part.licence)
    return ResolvedModel(
        name=found.name,
        path=str(found.folder),
        commit=found.commit,
        repo=found.repo,
        licence=found.licence,
        adapter=adapter,
    )


def resolve_publish(
    request: PublishRequest, artifact: str, digest: str, location: str, hub: HubAccess
) -> PublishJobSpec:
    """The spec of a job that publishes the artifact of that id, content and location.

    Raises:
        InvalidInputError: with every reason why the owner cannot publish there.
        HubUnavailableError: the Hub does not answer.
    """
    findings = Findings()
    check_target(request.publish, hub, findings)
    findings.raise_any()
    return PublishJobSpec(kind="publish", artifact=artifact, digest=digest, location=location, publish=request.publish)


def check_zoo(zoo: ZooSpec, roots: Sequence[Path], hub: HubAccess | None = None) -> None:
    """Every entry is a whole causal language model that lies inside the roots.

    Raises:
        InvalidInputError: with every problem that was found.
        IncompatibleModelsError: with every problem, all of them about models as such.
        HubUnavailableError: the Hub does not answer.
    """
    findings = Findings()
    find_models(zoo, roots, findings, hub)
    findings.raise_any()


def check_publish(target: PublishSpec, models: Sequence[FoundModel], findings: Findings, hub: HubAccess | None) -> None:
    """Whether what is made of these models can be pushed there; what is against it goes to `findings`.

    Raises:
        HubUnavailableError: the Hub does not answer.
    """
    if hub is None:
        detail = "this service publishes nothing"
        findings.add(InvalidInputError(detail, [Problem("", "no_hub", detail, "leave it out")]), "/publish", "publish")
        return
    check_target(target, hub, findings)
    conflicts = combine(licences_of(models)).conflicts
    if target.licence is None:
        # Who names a licence has read the members' and decides.
        for conflict in conflicts:
            fix = "leave members out, or read their licences and name the result's as publish.licence"
            problem = Problem("", "licences_conflict", conflict, fix)
            findings.add(InvalidInputError(conflict, [problem]), "/publish/licence", "licences")


def _check_shared_layers(request: JobRequest, models: Sequence[FoundModel], findings: Findings) -> None:
    """Families whose results are to share layers must be alike in every shape, and so must the base."""
    if not request.mixture.shares_layers or not models:
        return
    check_shapes(models, findings)
    first, mixture = models[0], request.mixture
    layers = read_config(first.headers).get("num_hidden_layers", read_config(first.headers).get("n_layer"))
    # A hybrid of MLPs can be dense throughout, one of layers is then no mixture.
    if isinstance(layers, int) and mixture.dense_layers >= layers:
        detail, fix = f"there are {layers} layers", f"set it to at most {layers - 1}"
        problem = Problem("", "dense_layers", detail, fix)
        findings.add(InvalidInputError(detail, [problem]), "/mixture/dense_layers", "mixture")
    if isinstance(request.search, DataFlow):
        detail, fix = "a data-flow search makes models of any depth", "set level to model and dense_layers to 0"
        problem = Problem("", "other_shapes", detail, fix)
        findings.add(InvalidInputError(detail, [problem]), "/mixture/level", "mixture")


def check_shapes(models: Sequence[FoundModel], findings: Findings, *, one_tokenizer: bool = True) -> None:
    """That models have one architecture, one size of every tensor and one tokenizer; point at those that differ."""
    parts = [signature_parts(read_config(model.headers), folder_tensors(model.headers)) for model in models]
    rows = [read_config(model.headers).get("vocab_size") for model in models]
    for index, model in enumerate(models[1:], 1):
        found = list(differences(parts[0], parts[index]))
        found += [f"{rows[0]} and {rows[index]} rows of vocabulary"] if rows[index] != rows[0] else []
        found += ["their tokenizers"] if one_tokenizer and model.tokenizer != models[0].tokenizer else []
        if found:
            detail = f"it and {models[0].name} differ in {'; '.join(found[:4])}, and experts that share layers may not"
            fix = "leave it out, or choose level: model without dense_layers"
            findings.add(refusal("other_shapes", detail, fix), model.pointer, model.name)


def _check_base(request: JobRequest, zoo: ZooSpec, findings: Findings) -> None:
    if zoo.base is not None:
        return
    detail = f"task vectors are taken from the base, and the zoo '{zoo.name}' has none"
    if request.clustering.weights == "task_vector":
        problem = Problem("", "no_base", detail, "add 'base' to the zoo, or set weights to raw")
        findings.add(InvalidInputError(detail, [problem]), "/clustering/weights", "clustering")
    if takes_task_vectors(request.search):
        problem = Problem("", "no_base", detail, "add 'base' to the zoo, or search linear merges only")
        findings.add(InvalidInputError(detail, [problem]), "/search/methods", "search")
