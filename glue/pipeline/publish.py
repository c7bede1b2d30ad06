"""Stage `publish`: the finished artifact to a repository on the Hub, of which the engine knows for this unit only."""

from typing import Any

from glue.checkpoints.manifest import DamagedFolderError, read_manifest
from glue.pipeline.context import Context
from glue.publishing.push import push as push_folder
from glue.specs.build import BuildJobSpec
from glue.specs.kinds import AnyJobSpec
from glue.specs.plan import StageOutcome, UnitOutcome, UnitRequest
from glue.specs.publish import PublishJobSpec
from glue.specs.results import PublishedModel


def push(request: UnitRequest, spec: AnyJobSpec, context: Context) -> UnitOutcome:
    """Push the artifact of that digest; the unit's id marks the commit, so that no attempt makes a second one.

    Raises:
        DamagedFolderError: the folder is not the artifact.
        GlueError: as `glue.publishing.push.push`.
    """
    assert spec.publish is not None
    folder = context.artifacts / str(request.payload["location"])
    manifest = read_manifest(folder)
    if manifest.digest != request.payload["digest"]:
        raise DamagedFolderError(f"{folder.name} is not the artifact {request.payload['digest']}")
    made = push_folder(
        folder,
        manifest,
        spec.publish,
        mark=f"Made by Model-GLUE, {request.unit_id}",
        api=context.hub_access().api(),
        say=context.progress,
    )
    return UnitOutcome(PublishedModel(repo=made.repo, commit=made.commit, tag=made.tag, url=made.url).as_json())


def advance(request: UnitRequest, spec: AnyJobSpec) -> UnitOutcome:
    """The job's result: that of the report, where it had one, and where it was published."""
    (pushed,) = request.units
    assert pushed.result is not None
    made = _made(request.outcomes, spec)
    return UnitOutcome(made | {"published": PublishedModel.parse(pushed.result).as_json()}, finished=True)


def _made(outcomes: tuple[StageOutcome, ...], spec: AnyJobSpec) -> dict[str, Any]:
    if isinstance(spec, PublishJobSpec):
        return {"digest": spec.digest, "location": spec.location}
    last = "build" if isinstance(spec, BuildJobSpec) and spec.report is None else "report"
    return next(outcome.result for outcome in outcomes if outcome.name == last)
