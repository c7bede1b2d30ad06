"""Records into the shapes of answers. Pure; asks nothing of the database."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from api import schemas
from glue.plans.model_glue import stage_names
from glue.records import tables
from glue.records.jobs import StageProgress, UnitView
from glue.records.workers import WorkerView
from glue.references.licences import combine, licences_of
from glue.specs.expression import parse_expression
from glue.specs.job import JobSpec, ResolvedModel
from glue.specs.kinds import AnyJobSpec
from glue.specs.recipes import mergekit_recipe

Row = TypeVar("Row")
Item = TypeVar("Item")

# The kind under which a finished job's report stage records its folder.
MODEL_ARTIFACT = "model"


def page(rows: Sequence[Row], limit: int, item: Callable[[Row], Item], cursor: Callable[[Row], str]) -> dict[str, Any]:
    """A page of at most `limit` items from one row more than that, which only tells whether there are more."""
    shown = rows[:limit]
    more = len(rows) > limit
    return {
        "object": "list",
        "data": [item(row) for row in shown],
        "has_more": more,
        "next_cursor": cursor(shown[-1]) if more else None,
    }


def whole(rows: Sequence[Row], item: Callable[[Row], Item]) -> dict[str, Any]:
    """A list that always fits one page."""
    return {"object": "list", "data": [item(row) for row in rows], "has_more": False, "next_cursor": None}


def zoo(row: tables.Zoo) -> schemas.Zoo:
    """A stored zoo."""
    return schemas.Zoo(
        id=row.id,
        object="zoo",
        name=row.name,
        spec=row.spec,
        digest=_digest(row.digest),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def job(
    row: tables.Job,
    stages: Sequence[tables.Stage],
    progress: Sequence[StageProgress],
    artifacts: Sequence[tables.Artifact],
    now: datetime,
) -> schemas.Job:
    """A job with its stages. `progress` counts the units of the stages, `now` is the database's time."""
    shown = stage_list(stages, progress)
    return schemas.Job(
        id=row.id,
        object="job",
        kind=row.kind,
        name=row.name,
        labels=row.labels,
        priority=row.priority,
        zoo_id=row.zoo_id,
        status=_literal(row.status),
        status_reason=row.status_reason,
        status_message=_message(row, shown),
        spec=row.spec,
        spec_digest=_digest(row.spec_digest),
        seed=row.seed,
        reproducible=row.reproducible,
        warnings=_warnings(row),
        progress=_progress(row, shown),
        chain=_chain(row),
        stages=shown,
        result=_result(row, artifacts),
        published=_published(row),
        error=_failure(row.error),
        durations=_durations(row, now),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        initiator=schemas.Initiator(type="owner", id=row.owner),
    )


def stage_list(stages: Sequence[tables.Stage], progress: Sequence[StageProgress]) -> list[schemas.Stage]:
    """The stages with the counts of their units."""
    counts = {
        (each.stage, each.family): schemas.UnitCounts(finished=each.finished, total=each.total) for each in progress
    }
    none = schemas.UnitCounts(finished=0, total=0)
    return [_stage(row, counts.get((row.name, row.family), none)) for row in stages]


def unit(view: UnitView) -> schemas.Unit:
    """A unit."""
    return schemas.Unit(
        id=view.id,
        object="unit",
        stage=view.stage,
        family=view.family or None,
        kind=view.kind,
        generation=view.generation,
        position=view.position,
        worker_class=view.worker_class,
        status=_literal(view.state),
        attempts=view.attempts,
        crashes=view.crashes,
        worker=view.worker,
        progress=view.progress,
        summary=view.summary,
        error=_failure(view.error),
        created_at=view.created_at,
        started_at=view.started_at,
        finished_at=view.finished_at,
    )


def unit_detail(row: tables.Unit, spec: AnyJobSpec) -> schemas.UnitDetail:
    """A unit with everything in it."""
    return schemas.UnitDetail(
        id=row.id,
        object="unit",
        kind=row.kind,
        status=_literal(row.state),
        payload=row.payload,
        result=row.result,
        mergekit=_mergekit(row, spec),
    )


def _mergekit(row: tables.Unit, spec: AnyJobSpec) -> dict[str, Any] | None:
    if not isinstance(spec, JobSpec) or "expression" not in row.payload:
        return None
    return mergekit_recipe(parse_expression(row.payload["expression"]), spec.sources(), spec.output.dtype)


def event(row: tables.Event) -> schemas.Event:
    """An entry of a job's record."""
    return schemas.Event(
        object="event",
        seq=row.seq,
        type=row.type,
        stage=row.stage,
        family=row.family or None,
        unit_id=row.unit_id,
        data=row.data,
        at=row.at,
    )


def artifact(row: tables.Artifact) -> schemas.Artifact:
    """A finished folder."""
    manifest = schemas.Manifest.model_validate(row.manifest)
    return schemas.Artifact(
        id=row.id,
        object="artifact",
        job_id=row.job_id,
        kind=row.kind,
        digest=_digest(row.digest),
        location=row.location,
        size=sum(file.size for file in manifest.files),
        manifest=manifest,
        created_at=row.created_at,
    )


def worker(row: WorkerView) -> schemas.Worker:
    """A worker; which unit it runs may be somebody else's business, so only that it runs one is told."""
    return schemas.Worker(
        id=row.id,
        object="worker",
        host=row.host,
        classes=row.classes,
        gpu_memory_bytes=row.gpu_memory_bytes,
        version=row.version,
        draining=row.draining,
        busy=row.unit_id is not None,
        started_at=row.started_at,
        beat_at=row.beat_at,
    )


def hub_token(row: tables.HubToken) -> schemas.HubToken:
    """An owner's token, without the token."""
    return schemas.HubToken(
        object="hub_token", account=row.account, role=row.role, created_at=row.created_at, updated_at=row.updated_at
    )


def model_of(row: tables.Job, artifacts: Sequence[tables.Artifact]) -> tables.Artifact | None:
    """The artifact that is the job's result, if the job has succeeded."""
    digest = (row.result or {}).get("digest")
    return next((each for each in artifacts if each.kind == MODEL_ARTIFACT and each.digest == digest), None)


def _stage(row: tables.Stage, units: schemas.UnitCounts) -> schemas.Stage:
    return schemas.Stage(
        id=row.id,
        object="stage",
        name=row.name,
        family=row.family or None,
        position=row.position,
        status=_literal(row.state),
        generation=row.generation,
        units=units,
        error=_failure(row.error),
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def _chain(row: tables.Job) -> list[str]:
    reports, publishes = (row.spec.get(name) is not None for name in ("report", "publish"))
    return list(stage_names(row.kind, reports=reports, publishes=publishes))


def _progress(row: tables.Job, stages: Sequence[schemas.Stage]) -> schemas.Progress:
    names = _chain(row)
    done = sum(_share([stage for stage in stages if stage.name == name]) for name in names) / len(names)
    units = schemas.UnitCounts(
        finished=sum(stage.units.finished for stage in stages), total=sum(stage.units.total for stage in stages)
    )
    percent = 100 if row.status == "succeeded" else min(int(100 * done), 99)
    return schemas.Progress(percent=percent, stage=_current(stages), units=units)


def _share(stages: Sequence[schemas.Stage]) -> float:
    """The part that is done, from 0 to 1, of one stage of the chain in all its families."""
    return sum(map(_stage_share, stages)) / len(stages) if stages else 0.0


def _stage_share(stage: schemas.Stage) -> float:
    # Units that were cancelled have ended too, so in a stage that failed the counts tell nothing.
    running = stage.units.finished / max(stage.units.total, 1) if stage.status == "running" else 0.0
    return 1.0 if stage.status == "succeeded" else running


def _current(stages: Sequence[schemas.Stage]) -> str | None:
    return next((stage.name for stage in stages if stage.status == "running"), None)


def _message(row: tables.Job, stages: Sequence[schemas.Stage]) -> str | None:
    match row.status:
        case "queued":
            return "waiting for a worker"
        case "paused":
            return "paused; units that run still finish"
        case "cancelling":
            return "waiting for running units to stop"
        case "failed":
            return (row.error or {}).get("detail")
    name = _current(stages)
    if name is None:
        return None
    open_stages = [stage for stage in stages if stage.name == name]
    finished, total = (sum(getattr(stage.units, count) for stage in open_stages) for count in ("finished", "total"))
    return f"{name}: {finished} of {total} units"


def _durations(row: tables.Job, now: datetime) -> schemas.Durations:
    until = row.finished_at or now
    started = row.started_at
    return schemas.Durations(
        queued_seconds=((started or until) - row.created_at).total_seconds(),
        running_seconds=(until - started).total_seconds() if started else None,
    )


def _result(row: tables.Job, artifacts: Sequence[tables.Artifact]) -> schemas.JobResult | None:
    model = model_of(row, artifacts)
    if row.result is None or model is None:
        return None
    return schemas.JobResult(
        artifact_id=model.id,
        digest=_digest(model.digest),
        recommended=row.result.get("recommended"),
        best_single=row.result["best_single"],
        gain_over_best_single=row.result["gain_over_best_single"],
        gain_over_best_single_stderr=row.result["gain_over_best_single_stderr"],
    )


def _warnings(row: tables.Job) -> list[str]:
    """What to read before the result is used: a build's remarks, and what follows from the models' licences."""
    remarks = list((row.result or {}).get("remarks", ()))
    licences = licences_of(ResolvedModel.parse(model) for model in row.spec.get("models", ()))
    if not any(licences.values()):
        return remarks
    combined = combine(licences)
    return [*remarks, *combined.conflicts, *combined.notes]


def _published(row: tables.Job) -> schemas.Published | None:
    published = (row.result or {}).get("published")
    return schemas.Published.model_validate(published) if published else None


def _failure(error: dict[str, Any] | None) -> schemas.Failure | None:
    return None if error is None else schemas.Failure.model_validate({"problems": [], **error})


def _digest(hexadecimal: str) -> str:
    return f"sha256:{hexadecimal}"


def _literal(value: str) -> Any:
    # The table's CHECK constraint allows exactly the values of the schema's Literal, which checks them again.
    return value
