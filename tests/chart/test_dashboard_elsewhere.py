"""The dashboard's queries about GPUs and object storage, of which a deployment without either says nothing."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import REGISTRY

from glue.artifacts.storage import ArtifactStorage
from glue.checkpoints.manifest import publish_folder
from glue.telemetry.devices import DeviceCollector
from tests.support.chart_tools import CHART
from tests.support.promql import Scrapes

PANELS = json.loads((CHART / "files" / "dashboard.json").read_text())["panels"]
ELSEWHERE = ("glue_gpu_memory", "glue_artifact_transfer")
EXPRESSIONS = [
    target["expr"].replace("$__rate_interval", "5m")
    for panel in PANELS
    for target in panel["targets"]
    if any(name in target["expr"] for name in ELSEWHERE)
]


@pytest.fixture
def scrapes(tmp_path: Path) -> Scrapes:
    """Scrapes of a worker with two GPUs, as the driver's library tells of them, before and after a folder travels."""
    devices = CollectorRegistry()
    library: Any = SimpleNamespace(
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetMemoryInfo=lambda number: SimpleNamespace(used=20 * 2**30 + number, total=80 * 2**30),
    )
    devices.register(DeviceCollector(lambda: library))
    found = Scrapes()
    for moment in (0.0, 60.0):
        text = generate_latest(REGISTRY) + generate_latest(devices)
        found.add("worker-gpu", text.decode(), moment)
        travel(tmp_path / str(moment))
    return found


def travel(folder: Path) -> None:
    (folder / "work").mkdir(parents=True)
    (folder / "work" / "model.safetensors").write_bytes(bytes(1_000_000))
    _, location = publish_folder(folder / "work", folder / "here")
    storage = ArtifactStorage(f"file://{folder / 'bucket'}")
    storage.store(folder / "here", location)
    storage.fetch(folder / "there", location)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_query_returns_data(scrapes: Scrapes, expression: str) -> None:
    values = scrapes.query(expression)
    assert len(values) == 2, "both GPUs, or both directions"
    assert all(value > 0 for value in values.values())
    if "total" in expression and "gpu" in expression:
        assert all(value == pytest.approx(0.25) for value in values.values())
