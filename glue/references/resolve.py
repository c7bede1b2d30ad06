"""A job as submitted into the job as stored: references resolved and pinned, everything checked that headers tell.

Opens folders only, never a database or a connection.
"""

from collections.abc import Sequence
from pathlib import Path

from glue.references.findings import Findings
from glue.references.models import check_one_tokenizer, find_models
from glue.references.tasks import find_tasks
from glue.specs.errors import InvalidInputError, Problem
from glue.specs.job import JobRequest, JobSpec, ResolvedModel
from glue.specs.zoo import ZooSpec


def resolve_job(request: JobRequest, zoo: ZooSpec, roots: Sequence[Path], seed_default: int) -> JobSpec:
    """The complete, immutable spec of a request: models and task folders at a commit, a seed always present.

    Pointers of problems about models speak of the zoo's file, all others of the job's.

    Raises:
        InvalidInputError: with every problem that was found, some of them in the request itself.
        IncompatibleModelsError: with every problem, all of them about models that cannot be used (together).
    """
    findings = Findings()
    models = find_models(zoo, roots, findings)
    check_one_tokenizer(models, findings)
    _check_base(request, zoo, findings)
    proxy, proxy_commit = find_tasks(request.proxy, "/proxy", roots, findings)
    report, report_commit = find_tasks(request.report, "/report", roots, findings)
    findings.raise_any()
    commits = {"proxy": proxy_commit, "report": report_commit}
    return JobSpec(
        kind=request.kind,
        seed=seed_default if request.seed is None else request.seed,
        zoo=zoo,
        models=tuple(ResolvedModel(name=each.name, path=str(each.folder), commit=each.commit) for each in models),
        clustering=request.clustering,
        search=request.search,
        mixture=request.mixture,
        output=request.output,
        proxy=proxy,
        report=report,
        suite_commits={name: commit for name, commit in commits.items() if commit is not None},
    )


def check_zoo(zoo: ZooSpec, roots: Sequence[Path]) -> None:
    """Every entry is a whole causal language model that lies inside the roots.

    Raises:
        InvalidInputError: with every problem that was found.
        IncompatibleModelsError: with every problem, all of them about models as such.
    """
    findings = Findings()
    find_models(zoo, roots, findings)
    findings.raise_any()


def _check_base(request: JobRequest, zoo: ZooSpec, findings: Findings) -> None:
    if request.clustering.weights == "task_vector" and zoo.base is None:
        detail = f"task vectors are taken from the base, and the zoo '{zoo.name}' has none"
        problem = Problem("", "no_base", detail, "add 'base' to the zoo, or set weights to raw")
        findings.add(InvalidInputError(detail, [problem]), "/clustering/weights", "clustering")
