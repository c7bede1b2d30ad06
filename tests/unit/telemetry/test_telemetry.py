"""Metrics of devices, log lines and pulses, as who reads them sees them."""

import json
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glue.telemetry.devices import DeviceCollector
from glue.telemetry.logs import JsonFormatter, about
from glue.telemetry.pulse import beat
from glue.telemetry.traces import job_ids, submission_span, unit_span


def nvml(count: int, **memory: int) -> Any:
    """The driver's library as a machine with so many GPUs has it."""
    return SimpleNamespace(
        nvmlDeviceGetCount=lambda: count,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetMemoryInfo=lambda number: SimpleNamespace(**memory),
    )


def line_of(message: str, **extra: Any) -> dict[str, Any]:
    record = logging.LogRecord("name", logging.WARNING, __file__, 1, message, (), None, **extra)
    line: dict[str, Any] = json.loads(JsonFormatter().format(record))
    return line


def test_memory_of_every_gpu() -> None:
    used, total = DeviceCollector(lambda: nvml(2, used=3, total=7)).collect()
    assert [(sample.labels["gpu"], sample.value) for sample in used.samples] == [("0", 3), ("1", 3)]
    assert [sample.value for sample in total.samples] == [7, 7]


def test_a_machine_without_a_driver_has_no_gpu() -> None:
    # No driver here, or no GPU: a scrape must not fail.
    assert [list(family.samples) for family in DeviceCollector().collect()] == [[], []]


def test_a_line_says_what_it_is_about() -> None:
    with about(job_id="job_1"):
        with about(unit_id="unit_1"):
            inner = line_of("begins")
        outer = line_of("ends")
    assert (inner["job_id"], inner["unit_id"], inner["message"]) == ("job_1", "unit_1", "begins")
    assert inner["level"] == "warning"
    assert "unit_id" not in outer
    assert "job_id" not in line_of("later")


def test_an_error_is_on_the_same_line() -> None:
    try:
        raise ValueError("no\nsuch thing")
    except ValueError:
        record = logging.LogRecord("n", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert "ValueError: no" in json.loads(text)["error"]


def test_a_pulse_is_a_fresh_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pulse"
    monkeypatch.setenv("GLUE_PULSE_DIR", str(folder))
    beat("reaper")
    os.utime(folder / "reaper", (0, 0))
    beat("reaper")
    assert (folder / "reaper").stat().st_mtime > 0


def test_without_a_folder_there_is_no_pulse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLUE_PULSE_DIR", raising=False)
    beat("reaper")
    monkeypatch.setenv("GLUE_PULSE_DIR", "/proc/nowhere")
    beat("reaper")


def test_a_jobs_trace_follows_from_its_id() -> None:
    assert job_ids("job_1") == job_ids("job_1")
    assert job_ids("job_1") != job_ids("job_2")
    trace_id, span_id = job_ids("job_1")
    assert 0 < trace_id < 2**128
    assert 0 < span_id < 2**64


def test_traces_are_off_unless_asked_for() -> None:
    with unit_span("job_1", "merge.build", {}) as span:
        assert span is None
    submission_span("job_1", 0.0, {})
