"""What a preflight tells of a job, a zoo or a merge file before any weight is read. Values only."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """A value that is told; sizes are in bytes, durations in seconds."""

    model_config = ConfigDict(frozen=True)


class Finding(Answer):
    """One thing that was found; `pointer` is a JSON pointer into what the user wrote, `fix` says what to do."""

    pointer: str
    code: str
    detail: str
    fix: str


class ModelFacts(Answer):
    """One model as its headers and configs describe it.

    `group` numbers the members that can be merged with each other tensor by tensor, from 1; null for a base.
    `download_bytes` is what the service still has to fetch of it.
    """

    name: str
    source: str
    commit: str
    architecture: str
    parameters: int
    bytes: int
    dtype: str
    context: int | None
    rope: dict[str, object]
    tokenizer: str
    signature: str
    group: int | None
    licence: str | None
    download_bytes: int


class StageEstimate(Answer):
    """What a stage is expected to take: `units` at most so many, `seconds` on the workers that are there.

    `host_bytes` and `device_bytes` are what one unit needs at its peak; on a worker without a GPU the device's
    memory is the machine's.
    """

    stage: str
    worker_class: str
    units: int
    seconds: float
    host_bytes: int
    device_bytes: int


class DiskEstimate(Answer):
    """`needed_bytes` if every group becomes one family, `at_most_bytes` if every member stays alone.

    `free_bytes` is what the disk has now where results are kept; null where they are kept elsewhere.
    """

    needed_bytes: int
    at_most_bytes: int
    free_bytes: int | None


class Preflight(Answer):
    """`ok` means that submitting it would be accepted. Warnings do not stop a job, problems do.

    `assumptions` say what the estimates are made of; nothing was measured for them.
    """

    object: Literal["preflight"] = "preflight"
    kind: str
    ok: bool
    problems: list[Finding]
    warnings: list[Finding]
    models: list[ModelFacts]
    stages: list[StageEstimate]
    disk: DiskEstimate | None
    download_bytes: int
    seconds: float | None
    assumptions: list[str]
