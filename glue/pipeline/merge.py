"""Stage `merge` of one family: the winner built once, from the original members, in fp32."""

from glue.checkpoints.manifest import publish_folder
from glue.pipeline.context import Context
from glue.pipeline.models import write_merged
from glue.specs.expression import Member, members_of, parse_expression
from glue.specs.job import JobSpec
from glue.specs.plan import ArtifactPlan, UnitOutcome, UnitRequest
from glue.specs.results import MergeResult


def build(request: UnitRequest, spec: JobSpec, context: Context) -> UnitOutcome:
    """Write the family's model into the artifacts; its name is the family's members or its only one."""
    family = str(request.payload["family"])
    expression = parse_expression(request.payload["expression"])
    write_merged(expression, context.work / "model", spec, context, request.token)
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
