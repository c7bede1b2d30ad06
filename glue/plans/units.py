"""The kinds of units and what each needs of a worker."""

from typing import Any

from glue.specs.expression import Member, Merge, is_data_flow, members_of
from glue.specs.plan import ADVANCE, UnitPlan, WorkerClass
from glue.specs.results import ResolveResult

FP32_BYTES = 4

WORKER_CLASSES = {
    ADVANCE: WorkerClass.CPU,
    "resolve.inspect": WorkerClass.CPU,
    "similarity.compare": WorkerClass.CPU,
    "similarity.measure": WorkerClass.CPU,
    "score.candidate": WorkerClass.GPU,
    "score.mixture": WorkerClass.GPU,
    "merge.build": WorkerClass.CPU,
    "mixture.build": WorkerClass.CPU,
    "report.write": WorkerClass.CPU,
    "build.write": WorkerClass.CPU,
    # A mixture whose routers learn from text.
    "build.train": WorkerClass.GPU,
    "build.score": WorkerClass.GPU,
    "build.report": WorkerClass.CPU,
    "resolve.download": WorkerClass.HUB,
    "resolve.data": WorkerClass.HUB,
    "publish.push": WorkerClass.HUB,
}


def unit(kind: str, payload: dict[str, Any], gpu_memory_bytes: int = 0) -> UnitPlan:
    """A unit of that kind on the worker class that the kind needs.

    Raises:
        KeyError: the kind is unknown.
    """
    return UnitPlan(kind, payload, WORKER_CLASSES[kind], gpu_memory_bytes)


def scoring_memory(resolved: ResolveResult, expression: Member | Merge | None = None) -> int:
    """Bytes of device memory to score one candidate of the zoo: the largest model twice in fp32.

    Once for the resident model, once for activations, caches and logits together. A stack of layers takes as many
    times more as it is deeper.
    """
    whole = 2 * FP32_BYTES * max(model.parameters for model in resolved.models)
    if not isinstance(expression, Merge) or not is_data_flow(expression):
        return whole
    depth = resolved.model(members_of(expression)[0]).layers
    return whole * max(1, -(-len(expression.inputs) // depth))
