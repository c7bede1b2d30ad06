"""Stage `merge` of one family: the winner built once, from the original members, in fp32."""

from glue.checkpoints.dtypes import config_dtype
from glue.checkpoints.manifest import publish_folder
from glue.merging.data_flow import recipe_for
from glue.merging.engine import write_recipe
from glue.pipeline.context import Context
from glue.pipeline.models import checkpoints
from glue.specs.expression import Member, members_of, parse_expression
from glue.specs.job import JobSpec
from glue.specs.plan import ArtifactPlan, UnitOutcome, UnitRequest
from glue.specs.results import MergeResult


def build(request: UnitRequest, spec: JobSpec, context: Context) -> UnitOutcome:
    """Write the family's model into the artifacts; its name is the family's members or its only one."""
    family = str(request.payload["family"])
    expression = parse_expression(request.payload["expression"])
    opened = checkpoints(spec, context)
    write_recipe(
        recipe_for(expression, opened, config_dtype(spec.output.dtype)),
        opened,
        context.work / "model",
        dtype=spec.output.dtype,
        shard_bytes=spec.output.shard_bytes,
        token=request.token,
        progress=context.progress,
    )
    manifest, location = publish_folder(context.work / "model", context.artifacts)
    members = members_of(expression)
    name = expression.name if isinstance(expression, Member) else f"merge of {' + '.join(members)}"
    result = MergeResult(family=family, name=name, expression=expression, digest=manifest.digest, location=location)
    artifact = ArtifactPlan("merge", manifest.digest, location, manifest.as_json())
    return UnitOutcome(result.as_json(), artifact)


def advance(request: UnitRequest, spec: JobSpec) -> UnitOutcome:
    """The one unit's result is the stage's."""
    (built,) = request.units
    assert built.result is not None
    return UnitOutcome(MergeResult.parse(built.result).as_json(), finished=True)
