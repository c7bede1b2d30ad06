"""The Dockerfile: linted, and its build steps run in order in a scratch folder. No engine is needed."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.chart_tools import ROOT, checkov, hadolint
from tests.support.images import DOCKERFILE, Scratch, lineage, stages
from tests.support.sandbox_server import SandboxServer

TARGETS = ("api", "worker-cpu", "worker-gpu", "sandbox")
API_MEGABYTES = 250
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yml").read_text())
TEXT = DOCKERFILE.read_text()


@pytest.fixture
def steps(request: pytest.FixtureRequest) -> list[tuple[str, str]]:
    return [step for stage in lineage(request.param) for step in stage.steps]


every_target = pytest.mark.parametrize("steps", TARGETS, indirect=True)


@every_target
def test_nobody_is_root(steps: list[tuple[str, str]]) -> None:
    users = [value for instruction, value in steps if instruction == "USER"]
    assert users[-1] == "10001:10001"
    after = steps[max(number for number, step in enumerate(steps) if step[0] == "USER") :]
    assert not [step for step in after if step[0] == "RUN"]


@every_target
def test_health_labels_and_a_command(steps: list[tuple[str, str]]) -> None:
    said = {instruction for instruction, _ in steps}
    assert {"HEALTHCHECK", "LABEL", "CMD", "EXPOSE"} <= said
    command = [value for instruction, value in steps if instruction == "CMD"][-1]
    assert json.loads(command), "without a shell, so that signals reach the process"


def test_bases_are_pinned_by_whoever_builds() -> None:
    assert "ARG BASE_IMAGE\nARG NODE_IMAGE\n" in TEXT, "no default: a digest must be given"
    own = stages()
    for stage in own.values():
        assert stage.parent in own or stage.parent in ("${BASE_IMAGE}", "${NODE_IMAGE}")


def test_only_pinned_packages_are_installed() -> None:
    installs = [line for line in TEXT.splitlines() if re.search(r"pip\S* install", line)]
    assert len(installs) == 4
    assert all("--constraint constraints.txt" in line for line in installs)
    assert "ADD " not in TEXT
    assert "apt" not in TEXT


def test_what_is_copied_exists_and_travels_to_the_builder() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [words[:-1] for words in (match.split() for match in re.findall(r"^COPY (?!--from)(.*)$", TEXT, re.M))]
    sources = {source.rstrip("/") for group in copied for source in group}
    assert all({source, *map(str, Path(source).parents)} & allowed for source in sources)
    assert all((ROOT / source).exists() for source in sources)


def test_checkov_has_nothing_to_say() -> None:
    options = ["--framework", "dockerfile", "--skip-download", "--quiet", "--compact", "--output", "json"]
    done = subprocess.run([*checkov(), "-f", DOCKERFILE, *options], capture_output=True, text=True, check=False)
    failed = {check["check_id"] for check in json.loads(done.stdout)["results"]["failed_checks"]}
    # The base is an argument without a default, and docker/build.sh takes none but a digest.
    assert failed <= {"CKV_DOCKER_7"}, failed


# hadolint's findings that the Dockerfile accepts, each with its reason.
ACCEPTED = {
    "DL3059": "steps that change at different rates are layers of their own, so that a builder keeps the others",
    "DL3064": "TOKENIZERS_PARALLELISM is a switch and no secret",
}


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([hadolint(), "--format", "json", DOCKERFILE], capture_output=True, text=True, check=False)
    findings = json.loads(done.stdout)
    assert {each["code"] for each in findings} == ACCEPTED.keys(), findings
    assert [each["line"] for each in findings if each["code"] == "DL3064"] == [
        1 + next(number for number, line in enumerate(TEXT.splitlines()) if "ENV PYTHONPATH=/app" in line)
    ]


def test_the_build_script_wants_a_digest() -> None:
    script = ROOT / "docker" / "build.sh"
    digest = "python:3.11-slim-bookworm@sha256:" + "0" * 64

    def build(**environment: str) -> subprocess.CompletedProcess[str]:
        given = {"PATH": "/usr/bin:/bin", "DOCKER": "echo", **environment}
        return subprocess.run([script], env=given, capture_output=True, text=True, check=False)

    assert build().returncode != 0
    assert build(BASE_IMAGE="python:3.11").returncode == 2
    assert build(BASE_IMAGE=digest).returncode != 0, "torch's build must be chosen"
    given = {"BASE_IMAGE": digest, "TORCH_INDEX": "cpu-index", "TORCH_CUDA_INDEX": "cuda-index"}
    assert build(**given).returncode != 0, "Node.js must come from somewhere"
    assert build(**given, NODE_IMAGE="node:22").returncode == 2
    node = "node:22-bookworm-slim@sha256:" + "1" * 64
    built = build(**given, NODE_IMAGE=node).stdout.splitlines()
    assert [re.search(r"--target (\S+)", line)[1] for line in built] == list(TARGETS)  # type: ignore[index]
    assert "TORCH_INDEX=cuda-index" in built[2]
    assert f"NODE_IMAGE={node}" in built[3]


def test_every_service_of_compose_is_restricted() -> None:
    services = COMPOSE["services"]
    assert {"postgres", "redis", "migrate", "api", "maintenance", "worker"} <= services.keys()
    for name in ("redis", "migrate", "api", "maintenance", "worker", "worker-gpu", "sandbox"):
        service = services[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    for name, service in services.items():
        assert "latest" not in service["image"]
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services
            if how["condition"] == "service_healthy":
                assert services[needed]["healthcheck"], (name, needed)
    assert services["api"]["ports"] == ["127.0.0.1:8321:8321"], "the world is let in by who knows what it means"


def test_composes_sandbox_has_no_way_out_and_no_files() -> None:
    sandbox = COMPOSE["services"]["sandbox"]
    assert sandbox["networks"] == ["programs"]
    assert COMPOSE["networks"]["programs"]["internal"] is True
    assert sandbox["environment"].keys() == {"GLUE_SANDBOX_TOKEN"}
    assert {"mem_limit", "cpus", "pids_limit"} <= sandbox.keys()
    assert "volumes" not in sandbox
    on_its_network = {name for name, each in COMPOSE["services"].items() if "programs" in each.get("networks", [])}
    assert on_its_network == {"sandbox", "worker", "worker-gpu"}


def test_compose_names_images_that_the_dockerfile_makes() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    own = {service["image"] for service in COMPOSE["services"].values() if service["image"].startswith("model-glue/")}
    assert own == {f"model-glue/{target}:{version[1]}" for target in TARGETS}


def test_the_steps_of_the_api_image(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, {})
    scratch.build("build-api")
    packages = tmp_path / "opt" / "venv" / "lib" / "python3.11" / "site-packages"
    size = sum(file.lstat().st_size for file in packages.rglob("*")) / 1e6
    assert size < API_MEGABYTES, f"{size:.0f} MB"
    for absent in ("torch", "transformers", "datasets"):
        assert not (packages / absent).exists()
    code = "import api.app, workers.maintenance, glue.records.migrate, glue.records.issue_key, s3fs, opentelemetry.sdk"
    check_installed(tmp_path, packages, code)


@pytest.mark.long
def test_the_steps_of_the_worker_images(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, {})
    scratch.build("build-worker")
    packages = tmp_path / "opt" / "venv" / "lib" / "python3.11" / "site-packages"
    check_installed(tmp_path, packages, "import workers.slot, workers.engine.main, glue.pipeline.registry, pynvml")


def test_the_sandbox_image_runs_programs_with_what_it_holds(tmp_path: Path) -> None:
    Scratch(tmp_path, {}).build("sandbox")
    held = {str(file.relative_to(tmp_path / "app")) for file in (tmp_path / "app").rglob("*.py")}
    assert held == {"glue/__init__.py", *(str(file.relative_to(ROOT)) for file in (ROOT / "glue/sandbox").glob("*.py"))}
    server = SandboxServer(tmp_path, package=tmp_path / "app").start()
    try:
        assert server.run("python", "import math").passed
        assert not server.run("python", "import socket; socket.socket()").passed
    finally:
        server.kill()


def check_installed(root: Path, packages: Path, code: str) -> None:
    """The package is there with all its files, and what a container runs can be imported."""
    ours = [file for name in ("glue", "api", "workers", "migrations") for file in (ROOT / name).rglob("*")]
    missing = [
        file
        for file in ours
        if file.is_file() and file.suffix not in (".pyc",) and not (packages / file.relative_to(ROOT)).exists()
    ]
    assert not missing
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(root),
        "DATABASE_URL": "postgresql://none",
        "GLUE_HOME": str(root),
    }
    done = subprocess.run(
        [root / "opt" / "venv" / "bin" / "python", "-P", "-c", code],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(root / "opt")
