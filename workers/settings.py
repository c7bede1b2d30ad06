"""What a worker process is told by its environment. Knows nothing of what is done with it."""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from glue.specs.plan import WorkerClass

REGISTRY_RUNNER = "glue.pipeline.registry:run"


class BrokerSettings(BaseSettings):
    """Where wake-ups travel; empty means that there is no broker and everybody polls."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    redis_url: str = Field(default="", repr=False)


class Settings(BrokerSettings):
    """Everything a worker or the maintenance process needs. Times in seconds, sizes in bytes.

    `engine_memory` is the resident size above which an engine is replaced between units; 0 sets no limit.
    `drain` is how long a running unit may still take after SIGTERM before it is given back; `retry` is the
    wait before a failed unit is tried again, doubled by every failure; a lost one waits half as long.
    Every `sweep` the partial work of ended units is removed from `home`.
    `stall` is how long an engine may make no progress before it is killed; 0 sets no limit.
    With `idle_exit` a slot without a broker ends after so long without a unit; `metrics_port` 0 serves no metrics;
    an empty `artifacts_url` keeps finished folders in `home` alone.
    `secret_keys` open the owners' Hub tokens, `hub_budget` is what models of the Hub may take on disk; 0 sets
    no limit.
    """

    database_url: str = Field(repr=False)
    home: Path = Field(validation_alias="GLUE_HOME")
    worker_classes: Annotated[tuple[WorkerClass, ...], NoDecode] = Field(
        default=tuple(WorkerClass), min_length=1, validation_alias="GLUE_WORKER_CLASSES"
    )
    lease: float = Field(default=30, gt=0, validation_alias="GLUE_LEASE_SECONDS")
    reap: float = Field(default=5, gt=0, validation_alias="GLUE_REAP_SECONDS")
    poll: float = Field(default=30, gt=0, validation_alias="GLUE_POLL_SECONDS")
    republish: float = Field(default=30, gt=0, validation_alias="GLUE_REPUBLISH_SECONDS")
    drain: float = Field(default=5, ge=0, validation_alias="GLUE_DRAIN_SECONDS")
    retry: float = Field(default=2, ge=0, validation_alias="GLUE_BACKOFF_SECONDS")
    device: Literal["cpu", "cuda"] = Field(default="cpu", validation_alias="GLUE_DEVICE")
    device_memory: int = Field(default=0, ge=0, validation_alias="GLUE_GPU_MEMORY_BYTES")
    engine_memory: int = Field(default=0, ge=0, validation_alias="GLUE_ENGINE_MEMORY_BYTES")
    stall: float = Field(default=3600, ge=0, validation_alias="GLUE_STALL_SECONDS")
    sweep: float = Field(default=600, gt=0, validation_alias="GLUE_SWEEP_SECONDS")
    secret_keys: str = Field(default="", repr=False, validation_alias="GLUE_SECRET_KEY")
    hub_budget: int = Field(default=0, ge=0, validation_alias="GLUE_HUB_CACHE_BYTES")
    metrics_port: int = Field(default=0, ge=0, le=65535, validation_alias="GLUE_METRICS_PORT")
    idle_exit: float = Field(default=0, ge=0, validation_alias="GLUE_IDLE_EXIT_SECONDS")
    artifacts_url: str = Field(default="", repr=False, validation_alias="GLUE_ARTIFACTS_URL")
    engine_runner: str = Field(default=REGISTRY_RUNNER, validation_alias="GLUE_ENGINE_RUNNER")

    @field_validator("worker_classes", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _a_gpu_has_a_size(self) -> Self:
        if self.device == "cuda" and not self.device_memory:
            raise ValueError("GLUE_DEVICE=cuda needs GLUE_GPU_MEMORY_BYTES: units are matched with it")
        return self

    @property
    def artifacts(self) -> Path:
        """The root of finished folders."""
        return self.home / "artifacts"

    @property
    def work(self) -> Path:
        """The root of partial work."""
        return self.home / "work"

    @property
    def hub_cache(self) -> Path:
        """The root of models from the Hub."""
        return self.home / "hub"

    @property
    def unit_memory(self) -> int:
        """Bytes that one unit may use on the device; for a CPU without a setting, the machine's memory."""
        return self.device_memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
