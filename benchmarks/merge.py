"""glue merge against mergekit on generated checkpoints of 1.1 billion parameters: wall time and memory as ratios.

Run after `make install peer`:

    .venv/bin/python -m benchmarks.merge FOLDER [METHOD ...]     whole commands
    .venv/bin/python -m benchmarks.merge FOLDER --warm [METHOD ...]    merging proper, in one warm process
    .venv/bin/python -m benchmarks.merge FOLDER --many 12        memory with twelve models
    .venv/bin/python -m benchmarks.merge FOLDER --floor          reading every input once, writing the output once

Needs 14 GB below FOLDER, with twelve models 30 GB. Both programs run in turn, with inputs in the page cache and the
models' architecture known from an earlier merge. Memory is the largest sum of anonymous memory over the command's
process tree, sampled ten times a second.
"""

import mmap
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.commands import Run, into_page_cache, run
from benchmarks.models import make_models
from glue.checkpoints.architecture import architecture_of
from glue.references.folders import read_config
from tests.support.peer import PEER

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
ROOT = Path(__file__).parents[1]
WARM_RUNS = 2
BLOCK_BYTES = 4 * 1024 * 1024


def main(work: Path, arguments: list[str]) -> None:
    """Do what the arguments ask for and print it."""
    if arguments[:1] == ["--many"]:
        _many(work, int(arguments[1]))
    elif arguments[:1] == ["--floor"]:
        _floor(work)
    elif arguments[:1] == ["--warm"]:
        _warm(work, arguments[1:] or list(METHODS))
    else:
        _whole(work, arguments or list(METHODS))


def _whole(work: Path, methods: list[str]) -> None:
    make_models(work, 3)
    _tell("method            glue s  mergekit s  ratio   glue MB  mergekit MB  ratio")
    for method in methods:
        file = _file(work, method, 3)
        _prepare(work)
        ours = _glue(file, work)
        theirs = run([sys.executable, "-c", PEER_COMMAND, str(file), "theirs", "--quiet"], work, PYTHONPATH=str(PEER))
        _tell(
            f"{method:16} {ours.seconds:7.1f} {theirs.seconds:11.1f} {theirs.seconds / ours.seconds:6.1f}"
            f" {ours.anonymous_bytes / 1e6:9.0f} {theirs.anonymous_bytes / 1e6:12.0f}"
            f" {theirs.anonymous_bytes / ours.anonymous_bytes:6.1f}"
        )


def _warm(work: Path, methods: list[str]) -> None:
    make_models(work, 3)
    _tell("method           glue s  mergekit s  ratio")
    for method in methods:
        file = _file(work, method, 3)
        _prepare(work)
        seconds = []
        for which, path in (("ours", f"{ROOT}"), ("mergekit", f"{PEER}:{ROOT}")):
            command = [sys.executable, "-m", "benchmarks.warm", which, str(file), which, str(WARM_RUNS)]
            seconds.append(float(run(command, work, PYTHONPATH=path).output.splitlines()[-1]))
        _tell(f"{method:16} {seconds[0]:6.1f} {seconds[1]:11.1f} {seconds[1] / seconds[0]:6.1f}")


def _many(work: Path, count: int) -> None:
    make_models(work, count)
    _tell("models  method      glue s   glue MB")
    for method in ("linear", "dare_ties"):
        for models in (3, count):
            file = _file(work, method, models)
            _prepare(work)
            done = _glue(file, work)
            _tell(f"{models:6}  {method:10} {done.seconds:7.1f} {done.anonymous_bytes / 1e6:9.0f}")


def _floor(work: Path) -> None:
    make_models(work, 3)
    inputs = [work / f"model{number}" / "model.safetensors" for number in (1, 2, 3)]
    _prepare(work)
    began = time.monotonic()
    threads = [threading.Thread(target=_read, args=(inputs, part, 2)) for part in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = time.monotonic() - began
    began = time.monotonic()
    _write(work / "floor", inputs[0].stat().st_size)
    written = time.monotonic() - began
    (work / "floor").unlink()
    _tell(f"reading three models once, two threads: {read:.2f} s; writing one durably: {written:.2f} s")


def _read(files: list[Path], part: int, parts: int) -> None:
    buffer = mmap.mmap(-1, BLOCK_BYTES)
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        for position in range(part * BLOCK_BYTES, path.stat().st_size, parts * BLOCK_BYTES):
            os.preadv(descriptor, [buffer], position)
        os.close(descriptor)


def _write(path: Path, size: int) -> None:
    buffer = mmap.mmap(-1, BLOCK_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o644)
    os.posix_fallocate(descriptor, 0, size)
    for position in range(0, size, BLOCK_BYTES):
        os.pwrite(descriptor, buffer, position)
    os.fsync(descriptor)
    os.close(descriptor)


def _file(work: Path, method: str, count: int) -> Path:
    names = ["model1"] if method == "slerp" else [f"model{number}" for number in range(1, count + 1)]
    models = [{"model": f"./{name}", "parameters": METHODS[method]} for name in names]
    base = {} if method == "linear" else {"base_model": "./base"}
    shared = {"parameters": {"t": 0.4}} if method == "slerp" else {}
    file = work / f"{method}.yml"
    file.write_text(yaml.safe_dump({"merge_method": method, "models": models, "dtype": "bfloat16", **base, **shared}))
    return file


def _prepare(work: Path) -> None:
    for name in ("ours", "theirs", "mergekit"):
        shutil.rmtree(work / name, ignore_errors=True)
    # The first merge of an architecture on a machine asks transformers about it, some two seconds.
    architecture_of(read_config(work / "base"))
    into_page_cache([work / name / "model.safetensors" for name in ("base", "model1", "model2", "model3")])


def _glue(file: Path, work: Path) -> Run:
    shutil.rmtree(work / "ours", ignore_errors=True)
    return run([str(Path(sys.executable).with_name("glue")), "merge", str(file), "ours"], work)


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
