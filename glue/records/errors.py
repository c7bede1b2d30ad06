"""What the records refuse. Each error carries a stable `code`; what a caller makes of it is not known here."""

from typing import ClassVar

from glue.specs.errors import Fault, GlueError, Reason


class RecordsError(GlueError):
    """The root of the records' refusals."""

    code: ClassVar[str] = "records_error"


class LeaseLost(RecordsError):  # noqa: N818 - it names what happened to the worker, who stops and writes nothing
    """The unit is no longer leased under this token: another worker may have it already."""

    code = "lease_lost"


class RefusedError(RecordsError):
    """The caller asked for something that the records do not have or do not allow."""

    fault = Fault.USER
    reason = Reason.INVALID_INPUT


class NotFoundError(RefusedError):
    """There is no such record, or it belongs to somebody else."""

    code = "not_found"


class JobFinishedError(RefusedError):
    """The job has ended, or is being cancelled, so it cannot be changed any more."""

    code = "job_finished"


class KeyReusedError(RefusedError):
    """The Idempotency-Key was used before, for another request."""

    code = "idempotency_key_reused"


class KeyInUseError(RefusedError):
    """A request with this Idempotency-Key is being answered at this moment."""

    code = "idempotency_key_in_use"
