"""glue merge against mergekit on generated checkpoints of 1.1 billion parameters: wall time and memory as ratios.

Run after `make install peer`:  .venv/bin/python -m benchmarks.merge WORK_FOLDER [METHOD ...]
Needs about 14 GB below WORK_FOLDER. Both programs run as whole commands, in turn, with inputs in the page cache.
Memory is the largest sum of anonymous memory over the command's process tree, sampled ten times a second.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.models import make_models
from tests.support.peer import PEER

SAMPLE_SECONDS = 0.1
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 0.3},
    "slerp": {},
    "task_arithmetic": {"weight": 0.3},
    "model_stock": {},
    "dare_ties": {"weight": 0.3, "density": 0.5},
    "ties": {"weight": 0.3, "density": 0.5},
    "della": {"weight": 0.3, "density": 0.5, "epsilon": 0.1},
}
PEER_COMMAND = "from mergekit.scripts.run_yaml import main; main()"


@dataclass(frozen=True)
class Run:
    """A command's wall time and the most anonymous memory of its process tree."""

    seconds: float
    anonymous_bytes: int


def main(work: Path, methods: list[str]) -> None:
    """Compare the methods one after the other and print a row for each."""
    make_models(work, 3)
    sys.stdout.write("method            glue s  mergekit s  ratio   glue MB  mergekit MB  ratio\n")
    for method in methods:
        file = work / f"{method}.yml"
        file.write_text(yaml.safe_dump(_config(method)))
        _warm(work)
        ours = _run([str(Path(sys.executable).with_name("glue")), "merge", str(file), str(work / "ours")], work)
        theirs = _run([sys.executable, "-c", PEER_COMMAND, str(file), str(work / "theirs"), "--quiet"], work)
        sys.stdout.write(
            f"{method:16} {ours.seconds:7.1f} {theirs.seconds:11.1f} {theirs.seconds / ours.seconds:6.1f}"
            f" {ours.anonymous_bytes / 1e6:9.0f} {theirs.anonymous_bytes / 1e6:12.0f}"
            f" {theirs.anonymous_bytes / ours.anonymous_bytes:6.1f}\n"
        )
        sys.stdout.flush()


def _config(method: str) -> dict[str, Any]:
    names = ["model1"] if method == "slerp" else ["model1", "model2", "model3"]
    models = [{"model": f"./{name}", "parameters": METHODS[method]} for name in names]
    base = {} if method == "linear" else {"base_model": "./base"}
    shared = {"parameters": {"t": 0.4}} if method == "slerp" else {}
    return {"merge_method": method, "models": models, "dtype": "bfloat16", **base, **shared}


def _warm(work: Path) -> None:
    for path in work.glob("*/model.safetensors"):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def _run(command: list[str], work: Path) -> Run:
    for name in ("ours", "theirs"):
        shutil.rmtree(work / name, ignore_errors=True)
    environment = os.environ | {"PYTHONPATH": str(PEER), "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=work, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    most = 0
    while process.poll() is None:
        most = max(most, _anonymous(process.pid))
        time.sleep(SAMPLE_SECONDS)
    seconds = time.monotonic() - began
    if process.returncode != 0:
        assert process.stderr is not None
        raise RuntimeError(f"{command} failed: {process.stderr.read().decode()[-2000:]}")
    return Run(seconds, most)


def _anonymous(pid: int) -> int:
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            memory = process.memory_info()
            total += memory.rss - memory.shared
    except psutil.Error:
        return total
    return total


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:] or list(METHODS))
