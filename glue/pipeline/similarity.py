"""Stage `similarity`: all pairs of each signature group in one pass, then families by linkage."""

from glue.clustering.linkage import families
from glue.clustering.similarity import compare as compare_checkpoints
from glue.clustering.similarity import compare_merge
from glue.pipeline.context import Context
from glue.pipeline.models import checkpoints
from glue.pipeline.outcomes import Outcomes
from glue.specs.expression import parse_expression, weights_of
from glue.specs.job import JobSpec
from glue.specs.plan import UnitOutcome, UnitRequest
from glue.specs.results import Family, SimilarityMatrix, SimilarityResult
from glue.specs.zoo import BASE

# Similarities pass through JSON and decide families, so the noise of another order of sums must not.
SIMILARITY_DIGITS = 6


def compare(request: UnitRequest, spec: JobSpec, context: Context) -> UnitOutcome:
    """The similarity matrix of one group of members."""
    names = [str(name) for name in request.payload["members"]]
    opened = checkpoints(spec, context)
    base = opened[BASE] if spec.clustering.weights == "task_vector" else None
    similarity = compare_checkpoints([opened[name] for name in names], base, context.progress)
    values = tuple(tuple(round(value, SIMILARITY_DIGITS) for value in row) for row in similarity.overall)
    return UnitOutcome(SimilarityMatrix(members=tuple(names), values=values).as_json())


def measure(request: UnitRequest, spec: JobSpec, context: Context) -> UnitOutcome:
    """How alike some members are to a linear merge; for Heuristic-Similarity, which orders by it."""
    expression = parse_expression(request.payload["expression"])
    weights = weights_of(expression)
    members = [str(name) for name in request.payload["members"]]
    everybody = tuple(dict.fromkeys((*weights, *members)))
    opened = checkpoints(spec, context)
    base = opened[BASE] if spec.clustering.weights == "task_vector" else None
    parts = [weights.get(name, 0.0) for name in everybody]
    found = compare_merge([opened[name] for name in everybody], parts, base, context.progress)
    values = {name: round(found[everybody.index(name)], SIMILARITY_DIGITS) for name in members}
    return UnitOutcome({"expression": request.payload["expression"], "values": values})


def advance(request: UnitRequest, spec: JobSpec) -> UnitOutcome:
    """Families within each group; a member alone in its group is a family of one. Nobody is dropped."""
    matrices = tuple(SimilarityMatrix.parse(unit.result) for unit in request.units)
    compared = {matrix.members: matrix for matrix in matrices}
    clusters: list[tuple[str, ...]] = []
    for group in Outcomes(request.outcomes).resolve().groups:
        clusters += _clusters(group, compared.get(group), spec)
    order = spec.zoo.member_names()
    clusters.sort(key=lambda cluster: order.index(cluster[0]))
    named = tuple(Family(name=f"family-{index + 1}", members=cluster) for index, cluster in enumerate(clusters))
    return UnitOutcome(SimilarityResult(matrices=matrices, families=named).as_json(), finished=True)


def _clusters(group: tuple[str, ...], matrix: SimilarityMatrix | None, spec: JobSpec) -> list[tuple[str, ...]]:
    if matrix is None:
        return [group]
    threshold = spec.clustering.threshold
    assert threshold is not None
    return families(group, matrix.values, threshold, spec.clustering.linkage)
