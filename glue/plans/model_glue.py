"""The chains of jobs: which stages there are, and with which units each begins."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from glue.plans.units import FP32_BYTES, scoring_memory, unit
from glue.specs.build import BuildJobSpec
from glue.specs.expression import Member, Merge
from glue.specs.job import JobSpec
from glue.specs.kinds import AnyJobSpec, ModelJobSpec
from glue.specs.plan import StageOutcome, StagePlan, UnitPlan
from glue.specs.publish import PublishJobSpec
from glue.specs.results import (
    BuildResult,
    MergeResult,
    MixtureResult,
    ResolveResult,
    SearchResult,
    SimilarityResult,
)

Outcomes = Mapping[tuple[str, str], StageOutcome]
PUBLISH = "publish"

FirstUnits = Callable[[Any, str, Outcomes], tuple[UnitPlan, ...]]


@dataclass(frozen=True)
class StageKind:
    """A stage of the chain: what it waits for, whether it runs once per family, and its first units."""

    name: str
    needs: tuple[str, ...]
    per_family: bool
    first_units: FirstUnits


def stages_at_submission(spec: AnyJobSpec) -> tuple[StagePlan, ...]:
    """The stages that are known before anything ran; the first one is ready, with its units."""
    return tuple(
        StagePlan(kind.name, position, ready=not kind.needs, units=_first_units(kind, spec, "", {}))
        for position, kind in enumerate(_chain(spec))
        if not kind.per_family
    )


def stages_unlocked(spec: AnyJobSpec, outcomes: Iterable[StageOutcome]) -> tuple[StagePlan, ...]:
    """The stages that can start now: everything they need has finished, and they have not themselves.

    Pure: the same outcomes give the same plans, whoever asks and however often.
    """
    known = {(outcome.name, outcome.family): outcome for outcome in outcomes}
    plans, kinds = [], {kind.name: kind for kind in _chain(spec)}
    for position, kind in enumerate(kinds.values()):
        for family in _families(kind, known):
            if (kind.name, family) not in known and _met(kind, family, known, kinds):
                units = _first_units(kind, spec, family, known)
                plans.append(StagePlan(kind.name, position, family, ready=True, units=units))
    return tuple(plans)


def stage_names(kind: str = "model_glue", *, reports: bool = True, publishes: bool = False) -> tuple[str, ...]:
    """The names of a chain's stages in order, as a person follows them."""
    if kind == PUBLISH:
        return (PUBLISH,)
    chain = CHAIN if kind == "model_glue" else _build_chain(reports)
    return tuple(stage.name for stage in chain) + ((PUBLISH,) if publishes else ())


def _chain(spec: AnyJobSpec) -> tuple[StageKind, ...]:
    if isinstance(spec, PublishJobSpec):
        return (StageKind(PUBLISH, (), False, _push_artifact),)
    chain = _build_chain(spec.report is not None) if isinstance(spec, BuildJobSpec) else CHAIN
    return (*chain, StageKind(PUBLISH, (chain[-1].name,), False, _push_made)) if spec.publish else chain


def _build_chain(reports: bool) -> tuple[StageKind, ...]:
    return (*BUILD_CHAIN, StageKind("report", ("build",), False, _build_scores)) if reports else BUILD_CHAIN


def _families(kind: StageKind, known: Outcomes) -> tuple[str, ...]:
    if not kind.per_family:
        return ("",)
    if ("similarity", "") not in known:
        return ()
    result = SimilarityResult.parse(known["similarity", ""].result)
    return tuple(family.name for family in result.families)


def _met(kind: StageKind, family: str, known: Outcomes, kinds: Mapping[str, StageKind]) -> bool:
    return all(
        (needed, each) in known
        for needed in kind.needs
        for each in _needed_families(kinds[needed], kind, family, known)
    )


def _needed_families(needed: StageKind, kind: StageKind, family: str, known: Outcomes) -> tuple[str, ...]:
    if needed.per_family and kind.per_family:
        return (family,)
    # A stage that joins the families waits for each; before they are known it cannot start.
    return _families(needed, known) or ("",)


def _first_units(kind: StageKind, spec: AnyJobSpec, family: str, known: Outcomes) -> tuple[UnitPlan, ...]:
    ready = all(needed in {name for name, _ in known} for needed in kind.needs)
    return kind.first_units(spec, family, known) if ready else ()


def _resolve_units(spec: ModelJobSpec, family: str, known: Outcomes) -> tuple[UnitPlan, ...]:
    remote = {place: model.name for model in reversed(spec.models) for place in model.repositories()}
    if remote:
        # They are looked into once they are here. What several entries stand on is fetched once.
        return tuple(
            unit("resolve.download", {"name": remote.pop(place), "repo": place[0], "commit": place[1]})
            for model in spec.models
            for place in model.repositories()
            if place in remote
        )
    return inspect_units(spec)


def _arrivals(spec: ModelJobSpec, family: str, known: Outcomes) -> tuple[UnitPlan, ...]:
    """What comes from the Hub first; without any of that, the models are looked into at once."""
    models = _resolve_units(spec, family, known)
    fetched = tuple(unit for unit in models if unit.kind == "resolve.download")
    return (*fetched, *data_units(spec)) or models


def data_units(spec: ModelJobSpec) -> tuple[UnitPlan, ...]:
    """The units that fetch both suites' data sets, one for each repository at a commit."""
    wanted: dict[tuple[str, str], dict[str, None]] = {}
    for task in (task for suite in sorted(spec.suite_data) for task in spec.suite_data[suite]):
        paths = wanted.setdefault((task.repo, task.commit), {})
        paths.update(dict.fromkeys(path for split in task.splits.values() for path in split))
    return tuple(
        unit("resolve.data", {"repo": repo, "commit": commit, "paths": sorted(paths)})
        for (repo, commit), paths in wanted.items()
    )


def inspect_units(spec: ModelJobSpec) -> tuple[UnitPlan, ...]:
    """The units that look into every entry's folder, in zoo order."""
    return tuple(unit("resolve.inspect", {"name": model.name, "commit": model.commit}) for model in spec.models)


def _similarity_units(spec: JobSpec, family: str, known: Outcomes) -> tuple[UnitPlan, ...]:
    resolved = ResolveResult.parse(known["resolve", ""].result)
    groups = [list(group) for group in resolved.groups if len(group) > 1]
    return tuple(unit("similarity.compare", {"members": group}) for group in groups)


def _baseline_units(spec: JobSpec, family: str, known: Outcomes) -> tuple[UnitPlan, ...]:
    memory = scoring_memory(ResolveResult.parse(known["resolve", ""].result))
    singles = [_candidate(name, Member(name=name)) | {"suite": "proxy"} for name in spec.zoo.member_names()]
    return tuple(unit("score.candidate", single, memory) for single in singles)


def _merge_units(spec: JobSpec, family: str, known: Outcomes) -> tuple[UnitPlan, ...]:
    winner = SearchResult.parse(known["search", family].result).winner
    return (unit("merge.build", {"family": family, "expression": winner.expression.as_json()}),)


def _report_units(spec: JobSpec, family: str, known: Outcomes) -> tuple[UnitPlan, ...]:
    merges = [MergeResult.parse(outcome.result) for key, outcome in known.items() if key[0] == "merge"]
    singles = [_candidate(name, Member(name=name)) for name in spec.zoo.member_names()]
    merged = [_candidate(m.name, m.expression) for m in merges if not isinstance(m.expression, Member)]
    mixture = MixtureResult.parse(known["mixture", ""].result)
    resolved = ResolveResult.parse(known["resolve", ""].result)
    memory = max([scoring_memory(resolved), *(scoring_memory(resolved, m.expression) for m in merges)])
    candidates = [unit("score.candidate", each | {"suite": "report"}, memory) for each in singles + merged]
    if mixture.location is None:
        return tuple(candidates)
    located = {"location": mixture.location, "digest": mixture.digest, "suite": "report"}
    return (*candidates, unit("score.mixture", located, memory * len(mixture.experts)))


def _push_made(spec: ModelJobSpec, family: str, known: Outcomes) -> tuple[UnitPlan, ...]:
    made = known["report" if ("report", "") in known else "build", ""].result
    return (unit("publish.push", {"digest": made["digest"], "location": made["location"]}),)


def _push_artifact(spec: PublishJobSpec, family: str, known: Outcomes) -> tuple[UnitPlan, ...]:
    return (unit("publish.push", {"digest": spec.digest, "location": spec.location}),)


def _build_units(spec: BuildJobSpec, family: str, known: Outcomes) -> tuple[UnitPlan, ...]:
    if not spec.texts:
        return (unit("build.write", {"kind": spec.kind}),)
    models = ResolveResult.parse(known["resolve", ""].result).models
    memory = 2 * FP32_BYTES * sum(model.parameters for model in models)
    return (unit("build.train", {"kind": spec.kind}, memory),)


def _build_scores(spec: BuildJobSpec, family: str, known: Outcomes) -> tuple[UnitPlan, ...]:
    """Every model that was put in, and what came out."""
    built = BuildResult.parse(known["build", ""].result)
    memory = scoring_memory(ResolveResult.parse(known["resolve", ""].result))
    inputs = [_candidate(model.name, Member(name=model.name)) | {"suite": "report"} for model in spec.models]
    made = {"location": built.location, "digest": built.digest, "suite": "report"}
    return (
        *(unit("score.candidate", each, memory) for each in inputs),
        unit("build.score", made, 2 * FP32_BYTES * built.parameters),
    )


def _none_yet(spec: JobSpec, family: str, known: Outcomes) -> tuple[UnitPlan, ...]:
    return ()


def _candidate(name: str, expression: Member | Merge) -> dict[str, Any]:
    return {"name": name, "expression": expression.as_json()}


CHAIN = (
    StageKind("resolve", (), False, _arrivals),
    StageKind("similarity", ("resolve",), False, _similarity_units),
    StageKind("baselines", ("similarity",), False, _baseline_units),
    StageKind("search", ("baselines",), True, _none_yet),
    StageKind("merge", ("search",), True, _merge_units),
    StageKind("mixture", ("merge",), False, _none_yet),
    StageKind("report", ("mixture",), False, _report_units),
)
# Of a job that builds one model as its config says. With a suite a report follows.
BUILD_CHAIN = (StageKind("resolve", (), False, _arrivals), StageKind("build", ("resolve",), False, _build_units))
