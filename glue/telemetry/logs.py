"""Log lines as JSON objects that name the job, the unit and the request that they are about."""

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

TEXT_FORMAT = "[%(asctime)s: %(levelname)s/%(threadName)s] %(message)s"

_about: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)


@contextmanager
def about(**names: str) -> Iterator[None]:
    """Inside, every line of this thread or task carries these names, as `job_id="job_…"`."""
    token = _about.set({**(_about.get() or {}), **names})
    try:
        yield
    finally:
        _about.reset(token)


def note(**names: str) -> None:
    """From here on, until the task or thread ends, every line carries these names."""
    _about.set({**(_about.get() or {}), **names})


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `at` (UTC, ISO 8601), `level`, `logger`, `message`, what it is `about`, `error`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "thread": record.threadName,
            **(_about.get() or {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logs(thread: str = "") -> None:
    """Send the process's log lines to stderr, as GLUE_LOG_FORMAT says: `json`, or `text` when it says nothing.

    A process of one thread may give it a name that says more than "MainThread".
    """
    if thread:
        threading.main_thread().name = thread
    handler = logging.StreamHandler(sys.stderr)
    wants_json = os.environ.get("GLUE_LOG_FORMAT") == "json"
    handler.setFormatter(JsonFormatter() if wants_json else logging.Formatter(TEXT_FORMAT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
