"""What the API process is told by its environment. Knows nothing of what is done with it."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from api.event_stream import StreamTimes
from glue.records.sealing import Vault


class Settings(BaseSettings):
    """Everything the API needs. Times in seconds.

    `roots` are the folders below which zoos and tasks may lie, separated as in PATH. A connection that
    follows events asks Postgres every `event_poll`, shows that it lives every `event_ping`, and is closed,
    to be opened again by its client, after `event_stream`. An empty `redis_url` means: no broker. Without
    `secret_keys` no owner can store a token for the Hub.
    `metrics_port` 0 serves no metrics; an empty `artifacts_url` means that finished folders lie in `home`.
    Without a `log_format` logs are left to who started the process.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    database_url: str = Field(repr=False)
    redis_url: str = Field(default="", repr=False)
    home: Path = Field(validation_alias="GLUE_HOME")
    roots: Annotated[tuple[Path, ...], NoDecode] = Field(default=(), validation_alias="GLUE_ROOTS")
    metrics_port: int = Field(default=0, ge=0, le=65535, validation_alias="GLUE_METRICS_PORT")
    artifacts_url: str = Field(default="", repr=False, validation_alias="GLUE_ARTIFACTS_URL")
    log_format: Literal["", "json", "text"] = Field(default="", validation_alias="GLUE_LOG_FORMAT")
    secret_keys: str = Field(default="", repr=False, validation_alias="GLUE_SECRET_KEY")
    event_poll: float = Field(default=0.5, gt=0, validation_alias="GLUE_EVENT_POLL_SECONDS")
    event_ping: float = Field(default=15, gt=0, validation_alias="GLUE_EVENT_PING_SECONDS")
    event_stream: float = Field(default=600, gt=0, validation_alias="GLUE_EVENT_STREAM_SECONDS")

    @field_validator("roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @property
    def artifacts(self) -> Path:
        """The root of finished folders."""
        return self.home / "artifacts"

    @property
    def hub_cache(self) -> Path:
        """The root of models from the Hub."""
        return self.home / "hub"

    @property
    def vault(self) -> Vault | None:
        """What opens the owners' tokens; none without a key."""
        return Vault.from_text(self.secret_keys) if self.secret_keys else None

    @property
    def stream_times(self) -> StreamTimes:
        """How a stream of events behaves."""
        return StreamTimes(self.event_poll, self.event_ping, self.event_stream)
