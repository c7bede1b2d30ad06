"""A build as submitted into the job as stored: its models resolved and pinned, everything checked that headers tell.

Opens folders, and the Hub where it is handed one; never a database, and no torch.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from glue.builds.kinds import Config, parse_config, references_of, same_shapes, text_of, with_models
from glue.builds.texts import ROUTER, find_text
from glue.mixture.mix_yaml import MixFile
from glue.references.findings import Findings
from glue.references.hub_access import HubAccess
from glue.references.hub_datasets import DataSets
from glue.references.models import FoundModel, find_sources
from glue.references.resolve import check_publish, check_shapes, resolved_model
from glue.references.tasks import FoundSuite, find_tasks
from glue.specs.build import BuildJobSpec, BuildRequest, TrainingText
from glue.specs.suite import TaskData
from glue.specs.zoo import BASE

CONFIG, REPORT = "/config", "report"
_LONGEST_NAME = 48


@dataclass(frozen=True)
class BuildExamination:
    """What was found out about a build: its spec, unless something is wrong, and the models that can be used."""

    findings: Findings
    models: Sequence[FoundModel]
    spec: BuildJobSpec | None


def resolve_build(
    request: BuildRequest, roots: Sequence[Path], seed_default: int, hub: HubAccess | None = None
) -> BuildJobSpec:
    """The complete, immutable spec of a build: models and task folder at a commit, a seed always present.

    Without `hub` only local folders can be used, and nothing can be published.

    Raises:
        InvalidInputError: with every problem that was found, some of them in the request itself.
        IncompatibleModelsError: with every problem, all of them about models that cannot be used (together).
        HubUnavailableError: the Hub does not answer.
    """
    examination = examine_build(request, roots, seed_default, hub)
    examination.findings.raise_any()
    assert examination.spec is not None, "without a spec there is a problem"
    return examination.spec


def examine_build(
    request: BuildRequest, roots: Sequence[Path], seed_default: int, hub: HubAccess | None = None
) -> BuildExamination:
    """As `resolve_build`, but what is wrong is handed over beside what can be used.

    Raises:
        HubUnavailableError: the Hub does not answer.
    """
    findings = Findings()
    config = _parsed(request, findings)
    named = _names(text_of(each) for each in references_of(request.kind, config)) if config else {}
    models = _models(request, named, roots, findings, hub)
    if config is not None:
        _check_shapes(config, named, models, findings)
    data = _data(request, config, roots, findings, DataSets(hub) if hub else None)
    if request.publish is not None:
        check_publish(request.publish, models, findings, hub)
    spec = None if findings.problems else _spec(request, seed_default, models, named, data)
    return BuildExamination(findings, models, spec)


@dataclass(frozen=True)
class _Data:
    """What a build reads besides models: its report suite, the text of its routers, and what comes from the Hub."""

    report: FoundSuite | None
    texts: tuple[TrainingText, ...]
    fetched: dict[str, tuple[TaskData, ...]]


def _models(
    request: BuildRequest, named: dict[str, str], roots: Sequence[Path], findings: Findings, hub: HubAccess | None
) -> list[FoundModel]:
    places = _pointers(request)
    sources = {name: text for text, name in named.items()}
    pointers = {name: places.get(text, CONFIG) for name, text in sources.items()}
    return find_sources(sources, pointers, roots, findings, hub)


def _data(
    request: BuildRequest, config: Config | None, roots: Sequence[Path], findings: Findings, data: DataSets | None
) -> _Data:
    texts, fetched = find_text(config, CONFIG, roots, findings, data) if isinstance(config, MixFile) else ((), ())
    report = find_tasks(request.report, "/report", roots, findings, data) if request.report else None
    named = {ROUTER: fetched, REPORT: report.data if report else ()}
    return _Data(report, texts, {name: each for name, each in named.items() if each})


def _spec(
    request: BuildRequest, seed_default: int, models: Sequence[FoundModel], named: dict[str, str], data: _Data
) -> BuildJobSpec:
    commit = data.report.commit if data.report else None
    return BuildJobSpec(
        kind=request.kind,
        seed=seed_default if request.seed is None else request.seed,
        config=request.config,
        models=tuple(resolved_model(each) for each in models),
        references=named,
        shard_bytes=request.shard_bytes,
        verify=request.verify or ("load" if request.publish else "stream"),
        report=data.report.spec if data.report else None,
        suite_commits={REPORT: commit} if commit else {},
        suite_data=data.fetched,
        texts=data.texts,
        publish=request.publish,
    )


def _parsed(request: BuildRequest, findings: Findings) -> Config | None:
    with findings.at(CONFIG, request.kind):
        return parse_config(request.kind, request.config)
    return None


def _names(texts: Iterable[str]) -> dict[str, str]:
    """For each model as it is written a name of its own, made of its last part."""
    named: dict[str, str] = {}
    for text in texts:
        # Behind a revision's at, a repository or a folder; of `model+adapter` the adapter tells more.
        last = text.rpartition("+")[2].rstrip("/").rpartition("/")[2].partition("@")[0]
        stem = re.sub(r"[^A-Za-z0-9._-]", "-", last).lstrip("._-")[:_LONGEST_NAME] or "model"
        taken = {BASE, *named.values()}
        named[text] = next(name for name in _variants(stem) if name not in taken)
    return named


def _variants(stem: str) -> Iterable[str]:
    yield stem
    for number in range(2, 10_000):
        yield f"{stem}-{number}"


def _pointers(request: BuildRequest) -> dict[str, str]:
    """Where in the request each model is named first."""
    found: dict[str, str] = {}

    def note(pointer: str, text: str) -> str:
        found.setdefault(text, pointer)
        return text

    with_models(request.config, note, CONFIG)
    return found


def _check_shapes(config: Config, named: dict[str, str], models: Sequence[FoundModel], findings: Findings) -> None:
    """Experts that share layers have to be of one architecture, one depth, and one size of every tensor."""
    wanted = {named[text_of(each)] for each in same_shapes(config)}
    check_shapes([model for model in models if model.name in wanted], findings, one_tokenizer=False)
