"""The kinds of jobs: which spec a request or a stored row is of."""

from typing import Any

from glue.specs.build import BuildJobSpec, BuildRequest
from glue.specs.errors import InvalidInputError, Problem
from glue.specs.job import JobRequest, JobSpec
from glue.specs.publish import PublishJobSpec, PublishRequest

AnyJobSpec = JobSpec | BuildJobSpec | PublishJobSpec
AnyJobRequest = JobRequest | BuildRequest | PublishRequest
# Those that make a model of others.
ModelJobSpec = JobSpec | BuildJobSpec

_SPECS: dict[str, type[AnyJobSpec]] = {
    "model_glue": JobSpec,
    "merge": BuildJobSpec,
    "mixture": BuildJobSpec,
    "stack": BuildJobSpec,
    "publish": PublishJobSpec,
}
_REQUESTS: dict[str, type[AnyJobRequest]] = {
    "model_glue": JobRequest,
    "merge": BuildRequest,
    "mixture": BuildRequest,
    "stack": BuildRequest,
    "publish": PublishRequest,
}
KINDS = tuple(_REQUESTS)


def parse_job(value: dict[str, Any]) -> AnyJobSpec:
    """A stored spec.

    Raises:
        InvalidInputError: it is of no release that we know.
    """
    return _SPECS.get(str(value.get("kind")), JobSpec).parse(value)


def parse_request(value: Any) -> AnyJobRequest:
    """A request, as a user writes it.

    Raises:
        InvalidInputError: with one problem for each mistake.
    """
    kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in _REQUESTS:
        detail, fix = f"there is no kind of job {kind!r}", f"set kind to one of {', '.join(KINDS)}"
        raise InvalidInputError(f"/kind: {detail}; {fix}", [Problem("/kind", "job_kind", detail, fix)])
    return _REQUESTS[kind if isinstance(kind, str) else "model_glue"].parse(value)
