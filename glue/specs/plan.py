"""Stages and units as plain values: what is planned, what a worker is asked to run, what it answers."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

ADVANCE = "advance"
ADVANCE_POSITION = -1


class WorkerClass(StrEnum):
    """What a unit needs: a CPU, a GPU, or the right to speak to the Hub."""

    CPU = "cpu"
    GPU = "gpu"
    HUB = "hub"


@dataclass(frozen=True)
class UnitPlan:
    """A unit to be inserted. `payload` holds its inputs as JSON; `gpu_memory_bytes` is matched at the claim."""

    kind: str
    payload: dict[str, Any]
    worker_class: WorkerClass
    gpu_memory_bytes: int = 0


@dataclass(frozen=True)
class StagePlan:
    """A stage row. `ready` stages start at once; with no units an advance unit decides what comes first."""

    name: str
    position: int
    family: str = ""
    ready: bool = False
    units: tuple[UnitPlan, ...] = ()


@dataclass(frozen=True)
class StageOutcome:
    """The result of a finished stage of a job."""

    name: str
    family: str
    result: dict[str, Any]


@dataclass(frozen=True)
class FinishedUnit:
    """A unit of the open stage that an advance may look at; a failed one has an error and no result."""

    generation: int
    position: int
    kind: str
    payload: dict[str, Any]
    result: dict[str, Any] | None
    error: dict[str, Any] | None


@dataclass(frozen=True)
class UnitRequest:
    """All that the engine needs to run one unit; it never opens the database.

    `outcomes` are the job's finished stages, in order of position and family. `units` and `advances` are filled
    for an advance only: the finished units of its stage, in order of generation and position, and the results
    of the stage's earlier advances, in order of generation.
    """

    unit_id: str
    job_id: str
    stage: str
    family: str
    kind: str
    generation: int
    position: int
    token: int
    digest: str
    spec: dict[str, Any]
    payload: dict[str, Any]
    outcomes: tuple[StageOutcome, ...] = ()
    units: tuple[FinishedUnit, ...] = ()
    advances: tuple[dict[str, Any], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data, for the pipe to the engine."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `as_json`."""
        outcomes = tuple(StageOutcome(**outcome) for outcome in value["outcomes"])
        units = tuple(FinishedUnit(**unit) for unit in value["units"])
        return cls(**{**value, "outcomes": outcomes, "units": units, "advances": tuple(value["advances"])})


@dataclass(frozen=True)
class ArtifactPlan:
    """A finished folder to be recorded; `location` is relative to the artifacts' root."""

    kind: str
    digest: str
    location: str
    manifest: dict[str, Any]


@dataclass(frozen=True)
class UnitOutcome:
    """What a unit's run gives. Of an advance: either more `units`, or `finished` with the stage's result."""

    result: dict[str, Any] = field(default_factory=dict)
    artifact: ArtifactPlan | None = None
    units: tuple[UnitPlan, ...] = ()
    finished: bool = False

    def as_json(self) -> dict[str, Any]:
        """Plain JSON data, for the pipe to the worker."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `as_json`."""
        artifact = ArtifactPlan(**value["artifact"]) if value["artifact"] else None
        units = tuple(
            UnitPlan(**{**unit, "worker_class": WorkerClass(unit["worker_class"])}) for unit in value["units"]
        )
        return cls(value["result"], artifact, units, value["finished"])
