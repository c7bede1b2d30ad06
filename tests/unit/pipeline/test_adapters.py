"""A job whose members are adapters ends like one whose members are the merged models."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue.checkpoints.adapter import open_checkpoint
from glue.references.resolve import resolve_job
from glue.specs.job import JobRequest
from glue.specs.zoo import ZooSpec
from tests.support.adapters import write_adapter
from tests.support.in_process import InProcess
from tests.support.tiny_zoo import build_tiny_zoo, job_request


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo with two adapters on its base, and both merged into it, by reading them once."""
    root = build_tiny_zoo(tmp_path_factory.mktemp("zoo"))
    base = root / "models" / "base"
    for seed, name in enumerate(("eel", "fly")):
        lora = write_adapter(root / "adapters" / name, base, seed=seed)
        merged = shutil.copytree(base, root / "merged" / name)
        with open_checkpoint([base, lora]) as adapted:
            tensors = {key: adapted.read(key) for key in adapted.tensors}
        save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
    return root


def finished(root: Path, home: Path, folder: str, **changes: Any) -> InProcess:
    members = [{"name": name, "source": str(root / folder / name)} for name in ("eel", "fly")]
    members.append({"name": "cat", "source": str(root / "models" / "cat")})
    zoo = ZooSpec.parse({"name": "tiny", "base": {"source": str(root / "models" / "base")}, "members": members})
    spec = resolve_job(JobRequest.parse(job_request(root, **changes)), zoo, [root], seed_default=0)
    job = InProcess(spec, home)
    job.run()
    return job


def test_adapters_are_read_as_the_merged_models(root: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"mixture": {"include_rejected": True, "minimum_share": 0.0}}
    adapted = finished(root, tmp_path / "a", "adapters", **changes)
    merged = finished(root, tmp_path / "b", "merged", **changes)
    for stage in ("similarity", "baselines"):
        assert adapted.outcome(stage) == merged.outcome(stage)
    for family in adapted.outcome("similarity")["families"]:
        mine, others = (run.outcome("merge", family["name"]) for run in (adapted, merged))
        assert mine["expression"] == others["expression"]
        folders = [run.home / "artifacts" / found["location"] for run, found in ((adapted, mine), (merged, others))]
        first, second = (load_file(folder / "model.safetensors") for folder in folders)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert adapted.outcome("mixture")["experts"] == merged.outcome("mixture")["experts"]
    assert adapted.outcome("mixture")["score"] == merged.outcome("mixture")["score"]
    inputs = {model["name"]: model for model in adapted.outcome("resolve")["models"]}
    assert inputs["eel"]["content"] != inputs["fly"]["content"] != inputs["base"]["content"]


def test_the_card_names_the_adapter_beside_its_model(root: Path, tmp_path: Path) -> None:
    job = finished(root, tmp_path, "adapters")
    card = (tmp_path / "artifacts" / job.outcome("report")["location"] / "README.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith("| eel") and "a local folder" in line]
    assert [row.split("|")[1].strip() for row in rows] == ["eel", "eel (adapter on it)"]
    assert rows[1].count("|") == rows[0].count("|")
