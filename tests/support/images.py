"""The Dockerfile as data, and its build steps executed without an engine, in a scratch folder instead of an image."""

import os
import shutil
import string
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from dockerfile_parse import DockerfileParser

from tests.support.chart_tools import ROOT

DOCKERFILE = ROOT / "docker" / "Dockerfile"


@dataclass
class Stage:
    """One stage: its name, what it stands on, its instructions in order."""

    name: str
    parent: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages() -> dict[str, Stage]:
    """The stages by name, in order."""
    # The parser writes into the folder that it is given.
    copy = Path(mkdtemp()) / "Dockerfile"
    try:
        shutil.copy(DOCKERFILE, copy)
        return _stages(DockerfileParser(str(copy)).structure)
    finally:
        shutil.rmtree(copy.parent)


def _stages(structure: list[dict[str, Any]]) -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    for step in structure:
        instruction, value = step["instruction"], step["value"]
        if instruction == "FROM":
            parent, _, name = value.split()
            found[name] = Stage(name, parent)
        elif found and instruction != "COMMENT":
            list(found.values())[-1].steps.append((instruction, value))
    return found


def lineage(name: str) -> Iterator[Stage]:
    """The stages that a target is made of, from the base on."""
    stage = stages()[name]
    if stage.parent in stages():
        yield from lineage(stage.parent)
    yield stage


class Scratch:
    """A folder that a target's build steps run in: every absolute path of the image lies below `root`."""

    def __init__(self, root: Path, arguments: Mapping[str, str]) -> None:
        self.root = root
        self._folder = root
        self._variables = dict(arguments)

    def build(self, target: str) -> None:
        """Do what a builder would.

        Raises:
            AssertionError: a step failed.
        """
        for stage in lineage(target):
            for instruction, value in stage.steps:
                self._do(instruction, value)

    def _do(self, instruction: str, value: str) -> None:
        match instruction:
            case "ENV" | "ARG":
                for name, text in _pairs(value):
                    self._variables.setdefault(name, self._inside(text) if text.startswith("/") else text)
            case "WORKDIR":
                self._folder = Path(self._inside(string.Template(value).safe_substitute(self._variables)))
                self._folder.mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(value)
            case "RUN":
                self._run(value)

    def _inside(self, path: str) -> str:
        return path if path.startswith(str(self.root)) else str(self.root / path.lstrip("/"))

    def _copy(self, value: str) -> None:
        *sources, target = value.split()
        if sources[0].startswith("--from="):
            return
        for source in sources:
            place = Path(self._inside(str(self._folder / target)))
            if (ROOT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, place, dirs_exist_ok=True, ignore=ignored)
            else:
                place = place / Path(source).name if target.endswith("/") else place
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, place)

    def _run(self, command: str) -> None:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
        }
        path = f"{Path(getattr(sys, '_base_executable', sys.executable)).parent}:{os.environ['PATH']}"
        environment = {**inherited, **self._variables, "PATH": path}
        environment.pop("PIP_NO_CACHE_DIR", None)
        done = subprocess.run(
            ["sh", "-c", command], cwd=self._folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"RUN {command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def _pairs(value: str) -> Iterator[tuple[str, str]]:
    for word in value.split():
        name, separator, text = word.partition("=")
        if separator:
            yield name, text.strip('"')
