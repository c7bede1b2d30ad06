"""What a worker process is told, what the engine may know of it, and what reaches a log."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError

from glue.specs.plan import WorkerClass
from workers.app import worker_command
from workers.engine.process import engine_environment
from workers.logs import brief, masked
from workers.settings import Settings

NEEDED = {"DATABASE_URL": "postgresql://u:secret@h/d", "GLUE_HOME": "/somewhere"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("GLUE_") or name in ("DATABASE_URL", "REDIS_URL"):
            monkeypatch.delenv(name)
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)


def test_defaults() -> None:
    settings = Settings.model_validate({})
    assert settings.worker_classes == tuple(WorkerClass)
    assert settings.artifacts == Path("/somewhere/artifacts")
    assert settings.work == Path("/somewhere/work")
    assert settings.unit_memory > 2**30
    assert settings.redis_url == ""


def test_classes_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUE_WORKER_CLASSES", "gpu, hub")
    assert Settings.model_validate({}).worker_classes == (WorkerClass.GPU, WorkerClass.HUB)


@pytest.mark.parametrize(
    ("name", "value"),
    [("GLUE_WORKER_CLASSES", "tpu"), ("GLUE_WORKER_CLASSES", ""), ("GLUE_LEASE_SECONDS", "0"), ("GLUE_DEVICE", "cuda")],
)
def test_what_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings.model_validate({})


def test_a_gpu_needs_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUE_DEVICE", "cuda")
    monkeypatch.setenv("GLUE_GPU_MEMORY_BYTES", "80000000000")
    assert Settings.model_validate({}).unit_memory == 80_000_000_000


def test_settings_do_not_show_passwords() -> None:
    assert "secret" not in repr(Settings.model_validate({}))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@h:1/d", "postgresql://u:***@h:1/d"),
        ("redis://:p@h:1/0", "redis://:***@h:1/0"),
        ("redis://:p@ss@h:1/0", "redis://:***@h:1/0"),
        ("redis://h:1/0", "redis://h:1/0"),
        ("", ""),
    ],
)
def test_addresses_are_masked(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_a_database_error_is_told_without_its_statement() -> None:
    error = OperationalError("SELECT secret", {"a": "secret"}, RuntimeError("the server went away\nand more"))
    assert brief(error) == "RuntimeError: the server went away"


def test_the_engine_gets_fixed_hashes_and_nothing_unknown() -> None:
    given = {"PATH": "/bin", "DATABASE_URL": "d", "HF_TOKEN": "t", "PYTHONHASHSEED": "random", "SOMETHING": "x"}
    assert engine_environment(given) == {"PATH": "/bin", "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}


def test_the_engine_is_told_where_programs_run_and_no_other_address() -> None:
    given = {"GLUE_SANDBOX_URL": "http://sandbox:8800", "GLUE_SANDBOX_TOKEN": "t", "GLUE_ARTIFACTS_URL": "s3://b"}
    passed = engine_environment(given)
    assert {name for name in passed if name.startswith("GLUE_")} == {"GLUE_SANDBOX_URL", "GLUE_SANDBOX_TOKEN"}


def test_a_slots_command_names_its_classes() -> None:
    command = worker_command("one", ["cpu", "gpu"])
    assert command[0] == sys.executable
    assert command[1:] == ["-m", "workers.slot", "--name", "one", "--classes", "cpu,gpu"]


def test_the_celery_app_loads_neither_torch_nor_the_database() -> None:
    code = "import sys, workers.app; print(*(name for name in ('torch', 'sqlalchemy') if name in sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == ""


def test_a_worker_process_loads_no_torch() -> None:
    code = "import sys, workers.tasks, workers.slot, workers.maintenance; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
