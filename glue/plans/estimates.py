"""How long a job may take and how much room it needs, reckoned from sizes alone. Pure; measures nothing.

The throughputs are stated, not measured, so what comes out is an estimate and says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

from glue.plans.units import FP32_BYTES, WORKER_CLASSES
from glue.specs.build import BuildRequest
from glue.specs.job import JobRequest
from glue.specs.plan import WorkerClass
from glue.specs.preflight import StageEstimate
from glue.specs.search import (
    DataFlow,
    Evolutionary,
    GridSearch,
    HeuristicCoefficient,
    HeuristicSimilarity,
    SampledSearch,
    SearchSpec,
    UniformSoup,
)
from glue.specs.suite import SuiteSpec

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# The merge engine reads and writes in blocks, so this does not depend on the models.
STREAMING_BYTES = 1_000_000_000
# Python, torch and transformers in one process.
ENGINE_BYTES = 700_000_000


@dataclass(frozen=True)
class ModelSize:
    """A model's parameters and the bytes in which it is stored."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class Throughputs:
    """What is assumed of the machines: bytes a second of a disk and of the Hub, operations a second of a worker.

    `tokens` are those of one item with its choices; `items` those of a task that sets no limit.
    """

    disk: float = 1e9
    hub: float = 50e6
    merge: float = 300e6
    compare: float = 400e6
    processor: float = 50e9
    device: float = 50e12
    tokens: int = 256
    items: int = 1000

    def told(self, on_device: bool) -> list[str]:
        """The assumptions in words."""
        speed = f"{self.device / 1e12:.0f} TFLOP/s of a GPU" if on_device else f"{self.processor / 1e9:.0f} GFLOP/s"
        return [
            f"reading {self.disk / 1e9:.0f} GB/s, downloads {self.hub / 1e6:.0f} MB/s",
            f"merging writes {self.merge / 1e6:.0f} MB/s, comparing reads {self.compare / 1e6:.0f} MB/s",
            f"scoring: 2 operations a parameter and token at {speed}, {self.tokens} tokens an item, "
            f"{self.items} items of a task without a limit",
            "every group of equal signature counts as one family",
        ]


@dataclass(frozen=True)
class Workers:
    """How many slots there are for each class, and whether scoring runs on a GPU."""

    slots: Mapping[str, int]
    on_device: bool

    def of(self, kind: str) -> int:
        """The slots that may run units of that kind; one where none is there yet."""
        return max(1, self.slots.get(WORKER_CLASSES[kind], 0))


def estimate_stages(
    job: JobRequest,
    groups: Sequence[Sequence[ModelSize]],
    downloads: Sequence[int],
    workers: Workers,
    speeds: Throughputs,
) -> list[StageEstimate]:
    """The stages of a job whose members fall into these groups of equal signature, each taken as one family."""
    largest = max(size.parameters for group in groups for size in group)
    members = [size for group in groups for size in group]
    out = DTYPE_BYTES[job.output.dtype]
    scoring = _Scoring(largest, workers, speeds)
    experts = len(groups) if len(groups) > 1 else 0
    merged = sum(1 for group in groups if len(group) > 1)
    written = [max(size.parameters for size in group) * out for group in groups]
    read = sum(size.bytes for size in members)
    candidates = sum(candidates_of(job.search, len(group)) for group in groups)
    stages = [
        _resolve(members, downloads, speeds),
        _stage("similarity", "similarity.compare", merged, _compared(groups) / speeds.compare, STREAMING_BYTES),
        scoring.stage("baselines", len(members), items_of(job.proxy, speeds)),
        scoring.stage("search", candidates, items_of(job.proxy, speeds)),
        estimate_merge(read, sum(written), speeds, len(groups)),
    ]
    if experts:
        built = sum(written)
        seconds = built / speeds.disk + scoring.seconds(experts, items_of(job.proxy, speeds))
        memory = scoring.memory * experts
        stages.append(_stage("mixture", "score.mixture", 2, seconds, STREAMING_BYTES, memory))
    reported = len(members) + merged + (1 if experts else 0)
    stages.append(scoring.stage("report", reported, items_of(job.report, speeds), experts))
    if job.publish is not None:
        size = sum(written) if experts else max(written)
        stages.append(_stage("publish", "publish.push", 1, size / speeds.hub, 0))
    return stages


def estimate_build(
    job: BuildRequest, models: Sequence[ModelSize], downloads: Sequence[int], workers: Workers, speeds: Throughputs
) -> list[StageEstimate]:
    """The stages of a job that builds one model of these."""
    read, written = sum(size.bytes for size in models), built_bytes(job, models)
    seconds = written / speeds.merge + read / speeds.disk
    stages = [
        _resolve(models, downloads, speeds),
        _stage("build", "build.write", 1, seconds, STREAMING_BYTES),
    ]
    if job.report is not None:
        parameters = [size.parameters for size in models]
        largest = max(parameters) if job.kind == "merge" else sum(parameters)
        scoring = _Scoring(largest, workers, speeds)
        stages.append(scoring.stage("report", len(models) + 1, items_of(job.report, speeds)))
    if job.publish is not None:
        stages.append(_stage("publish", "publish.push", 1, written / speeds.hub, 0))
    return stages


def built_bytes(job: BuildRequest, models: Sequence[ModelSize]) -> int:
    """About the size of the result: a merge is as large as the largest model, the others hold all of them."""
    sizes = [size.bytes for size in models]
    return max(sizes) if job.kind == "merge" else sum(sizes)


def estimate_merge(read: int, written: int, speeds: Throughputs, units: int = 1) -> StageEstimate:
    """So many merges, which in all read and write so many bytes."""
    return _stage("merge", "merge.build", units, written / speeds.merge + read / speeds.disk, STREAMING_BYTES)


def disk_needed(job: JobRequest, groups: Sequence[Sequence[ModelSize]], downloads: Sequence[int]) -> int:
    """Bytes of downloads, of each family's merge, and of the mixture of them where there are several."""
    families = [max(size.parameters for size in group) * DTYPE_BYTES[job.output.dtype] for group in groups]
    return sum(downloads) + sum(families) * (2 if len(families) > 1 else 1)


def candidates_of(search: SearchSpec, members: int) -> int:
    """How many candidates a family of so many members has at most; none where there is nothing to merge."""
    if members < 2:
        return 0
    match search:
        case HeuristicCoefficient() | HeuristicSimilarity():
            return (members - 1) * len(search.coefficients)
        case UniformSoup():
            return 1
        case GridSearch():
            return comb(search.steps + members - 1, search.steps)
        case Evolutionary() if search.start == "heuristic":
            return search.budget.trials + (members - 1) * len(search.coefficients)
        case SampledSearch() | DataFlow():
            return search.budget.trials
    return members - 1


def items_of(suite: SuiteSpec, speeds: Throughputs) -> int:
    """The items of a suite; of a task without a limit a stated number."""
    return sum(task.limit or (len(task.items) if task.items else speeds.items) for task in suite.tasks)


@dataclass(frozen=True)
class _Scoring:
    parameters: int
    workers: Workers
    speeds: Throughputs

    @property
    def memory(self) -> int:
        """As `scoring_memory`: the largest model twice in fp32."""
        return 2 * FP32_BYTES * self.parameters

    def seconds(self, models: int, items: int) -> float:
        rate = self.speeds.device if self.workers.on_device else self.speeds.processor
        each = 2 * self.parameters * self.speeds.tokens * items / rate + FP32_BYTES * self.parameters / self.speeds.disk
        return models * each / min(max(models, 1), self.workers.of("score.candidate"))

    def stage(self, name: str, models: int, items: int, experts: int = 0) -> StageEstimate:
        memory = self.memory * max(experts, 1) if models else 0
        return _stage(name, "score.candidate", models, self.seconds(models, items), STREAMING_BYTES, memory)


def _resolve(members: Sequence[ModelSize], downloads: Sequence[int], speeds: Throughputs) -> StageEstimate:
    if any(downloads):
        fetched = sum(1 for each in downloads if each)
        return _stage("resolve", "resolve.download", fetched, sum(downloads) / speeds.hub, 0)
    seconds = sum(size.bytes for size in members) / speeds.disk
    return _stage("resolve", "resolve.inspect", len(members), seconds, 0)


def _compared(groups: Sequence[Sequence[ModelSize]]) -> float:
    """Bytes that pass through the comparison: every model is read once, and meets every other."""
    return sum(sum(size.bytes for size in group) * len(group) / 2 for group in groups if len(group) > 1)


def _stage(name: str, kind: str, units: int, seconds: float, host_bytes: int, device_bytes: int = 0) -> StageEstimate:
    return StageEstimate(
        stage=name,
        worker_class=WorkerClass(WORKER_CLASSES[kind]).value,
        units=units,
        seconds=round(seconds, 1),
        host_bytes=ENGINE_BYTES + host_bytes,
        device_bytes=device_bytes,
    )
