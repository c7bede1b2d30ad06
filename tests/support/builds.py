"""Jobs of one build over the tiny zoo's models: one of each kind."""

from pathlib import Path
from typing import Any

from glue.builds.resolve import resolve_build
from glue.specs.build import BuildJobSpec, BuildRequest


def config(kind: str, root: Path) -> dict[str, Any]:
    """What the command of that kind would read from a file."""
    model = {name: str(root / "models" / name) for name in ("base", "ant", "bee", "cat", "dog")}
    configs: dict[str, dict[str, Any]] = {
        "merge": {
            "merge_method": "dare_ties",
            "base_model": model["base"],
            "models": [
                {"model": model["ant"], "parameters": {"weight": 0.6, "density": 0.5}},
                {"model": model["bee"], "parameters": {"weight": 0.4, "density": 0.5}},
            ],
            "dtype": "float32",
        },
        "mixture": {
            "base_model": model["base"],
            "level": "model",
            "experts": [
                {"source_model": model["ant"], "positive_prompts": ["one two"]},
                {"source_model": model["cat"], "positive_prompts": ["red blue"]},
            ],
        },
        "stack": {"method": "concatenate", "models": [model["ant"], model["bee"]]},
    }
    return configs[kind]


def build_request(kind: str, root: Path, **changes: Any) -> dict[str, Any]:
    """A job that builds it."""
    return {"kind": kind, "seed": 7, "config": config(kind, root)} | changes


def report_suite(root: Path) -> dict[str, Any]:
    """The tiny zoo's report suite."""
    return {"include_path": str(root / "tasks"), "tasks": [{"task": "choose_report"}]}


def build_spec(kind: str, root: Path, **changes: Any) -> BuildJobSpec:
    """The resolved job."""
    return resolve_build(BuildRequest.parse(build_request(kind, root, **changes)), [root], seed_default=0)
