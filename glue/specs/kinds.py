"""The kinds of jobs: which spec a request or a stored row is of."""

from typing import Any

from glue.specs.job import JobRequest, JobSpec
from glue.specs.publish import PublishJobSpec, PublishRequest

AnyJobSpec = JobSpec | PublishJobSpec
AnyJobRequest = JobRequest | PublishRequest


def parse_job(value: dict[str, Any]) -> AnyJobSpec:
    """A stored spec.

    Raises:
        InvalidInputError: it is of no release that we know.
    """
    return PublishJobSpec.parse(value) if value.get("kind") == "publish" else JobSpec.parse(value)


def parse_request(value: Any) -> AnyJobRequest:
    """A request, as a user writes it.

    Raises:
        InvalidInputError: with one problem for each mistake.
    """
    is_publish = isinstance(value, dict) and value.get("kind") == "publish"
    return PublishRequest.parse(value) if is_publish else JobRequest.parse(value)
