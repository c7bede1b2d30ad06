"""Errors that reach a person: what is wrong, where, and how to mend it. Knows nothing of HTTP."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Fault(StrEnum):
    """Whose fault an error is; it decides whether a unit is tried again."""

    USER = "user"
    TRANSIENT = "transient"
    INTERNAL = "internal"


class Reason(StrEnum):
    """Why a job failed, in one stable word."""

    INVALID_INPUT = "invalid_input"
    MODEL_INCOMPATIBLE = "model_incompatible"
    OUT_OF_MEMORY = "out_of_memory"
    EVALUATION_FAILED = "evaluation_failed"
    WORKER_LOST = "worker_lost"
    DISK_FULL = "disk_full"
    HUB_UNAVAILABLE = "hub_unavailable"
    INTERNAL = "internal"


@dataclass(frozen=True)
class Problem:
    """One mistake: `pointer` is a JSON pointer into the user's file, `fix` says what to do."""

    pointer: str
    code: str
    detail: str
    fix: str = ""


class GlueError(Exception):
    """The root of our errors. `fault` and `reason` travel to the job's record."""

    fault = Fault.INTERNAL
    reason = Reason.INTERNAL

    def __init__(self, detail: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.problems = tuple(problems)

    def as_json(self) -> dict[str, Any]:
        """The form in which an error is stored with a unit or a job."""
        return {
            "reason": self.reason,
            "fault": self.fault,
            "detail": self.detail,
            "problems": [asdict(problem) for problem in self.problems],
        }


class InvalidInputError(GlueError):
    """The user's file or request is wrong."""

    fault = Fault.USER
    reason = Reason.INVALID_INPUT


class IncompatibleModelsError(GlueError):
    """The models cannot be used together, or one is not a complete causal language model."""

    fault = Fault.USER
    reason = Reason.MODEL_INCOMPATIBLE


class EvaluationError(GlueError):
    """A suite cannot be built or scored."""

    fault = Fault.USER
    reason = Reason.EVALUATION_FAILED


class DiskFullError(GlueError):
    """The disk ran full; what was finished before stays valid and the unit can be tried again."""

    fault = Fault.TRANSIENT
    reason = Reason.DISK_FULL


class DeviceMemoryError(GlueError):
    """A device ran out of memory."""

    fault = Fault.TRANSIENT
    reason = Reason.OUT_OF_MEMORY
