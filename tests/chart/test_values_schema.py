"""Values that make no sense are refused by `values.schema.json`, with the path, before anything is rendered."""

import subprocess

import pytest

from tests.support.chart_tools import HELM_WHEELS, render

BAD: dict[str, tuple[str, ...]] = {
    "api.replicas": ("--set", "api.replicas=many"),
    "api.port": ("--set", "api.port=70000"),
    "api.replica": ("--set", "api.replica=3"),
    "unknown": ("--set", "unknown=1"),
    "workers.cpu.classes": ("--set", "workers.cpu.classes={tpu}"),
    "workers.cpu.scaling": ("--set", "workers.cpu.scaling=keda"),
    "workers.cpu.replica": ("--set", "workers.cpu.replica=3"),
    "workers.cpu.deviceMemoryBytes": ("--set-string", "workers.cpu.deviceMemoryBytes=24Gi"),
    "workers.gpu": ("--set", "workers.gpu.device=cuda"),
    "workers.cpu.drainSeconds": ("--set", "workers.cpu.drainSeconds=0"),
    "workers.cpu.shmSize": ("--set", "workers.cpu.shmSize=a lot"),
    "artifacts.kind": ("--set", "artifacts.kind=ftp"),
    "artifacts.s3.url": ("--set", "artifacts.kind=s3"),
    "artifacts.accessModes": ("--set", "artifacts.accessModes={ReadWriteSometimes}"),
    "migrations.mode": ("--set", "migrations.mode=never"),
    "images.api.digest": ("--set", "images.api.digest=sha256:1234"),
    "images.api.tag": ("--set", "images.api.tag=latest"),
    "ingress.tlsSecret": ("--set", "ingress.tlsSecret="),
    "database.existingSecret": ("--set", "database.existingSecret="),
    "observability.monitors": ("--set", "observability.monitors=yes"),
    "sandbox.command": ("--set", "sandbox.command={sh}"),
    "sandbox.existingSecret": ("--set", "sandbox.existingSecret="),
    "sandbox.slots": ("--set", "sandbox.slots=0"),
}


@pytest.mark.parametrize("path", BAD)
@pytest.mark.parametrize("version", HELM_WHEELS)
def test_it_is_refused_by_its_path(version: str, path: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render(version, *BAD[path])
    said = refused.value.stderr
    parts = path.split(".")
    assert "meet the specifications of the schema" in said
    # helm 3 and 4 write paths in their own ways; both name the last part, or the object that has it.
    assert parts[-1] in said or parts[-2] in said, said


def test_every_value_of_the_chart_is_known_to_the_schema() -> None:
    for version in HELM_WHEELS:
        assert render(version)
