"""A zoo of tiny random models with tasks, in under a second: what the chain needs, and nothing that it learns."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from glue.references.resolve import resolve_job
from glue.specs.job import JobRequest, JobSpec
from glue.specs.zoo import ZooSpec
from tests.support.models import tiny_llama, tiny_neox
from tests.support.suites import choice_task, writing_task

SIBLING_NOISE, STRANGER_NOISE = 0.02, 0.5


def build_tiny_zoo(root: Path) -> Path:
    """Base, two siblings, a stranger of the same shape, a GPT-NeoX, and tasks for both suites below `root`."""
    tiny_llama(root / "models" / "base")
    _variant(root, "ant", seed=1, noise=SIBLING_NOISE)
    _variant(root, "bee", seed=2, noise=SIBLING_NOISE)
    _variant(root, "cat", seed=3, noise=STRANGER_NOISE)
    tiny_neox(root / "models" / "dog", seed=4)
    tasks = root / "tasks"
    choice_task(tasks, "choose", 24, seed=1, letters=1)
    choice_task(tasks, "choose_report", 24, seed=2, letters=1)
    writing_task(tasks, "write", 4, seed=1)
    writing_task(tasks, "write_report", 4, seed=2)
    return root


def _variant(root: Path, name: str, seed: int, noise: float) -> None:
    folder = tiny_llama(root / "models" / name)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    noisy = {
        key: tensor + noise * tensor.std().nan_to_num(0.0) * torch.randn(tensor.shape, generator=generator)
        for key, tensor in tensors.items()
    }
    save_file(noisy, folder / "model.safetensors", metadata={"format": "pt"})


def zoo_spec(root: Path, **changes: Any) -> ZooSpec:
    """The zoo with absolute sources."""
    members = [{"name": name, "source": str(root / "models" / name)} for name in ("ant", "bee", "cat", "dog")]
    return ZooSpec.parse(
        {"name": "tiny", "base": {"source": str(root / "models" / "base")}, "members": members} | changes
    )


def job_request(root: Path, **changes: Any) -> dict[str, Any]:
    """A job over the zoo; two coefficients keep its search short."""
    proxy, report = ([{"task": f"choose{end}"}, {"task": f"write{end}"}] for end in ("", "_report"))
    return {
        "kind": "model_glue",
        "zoo": "tiny",
        "seed": 7,
        "search": {"coefficients": [0.3, 0.7]},
        "proxy": {"include_path": str(root / "tasks"), "tasks": proxy},
        "report": {"include_path": str(root / "tasks"), "tasks": report},
    } | changes


def job_spec(root: Path, **changes: Any) -> JobSpec:
    """The resolved job."""
    return resolve_job(JobRequest.parse(job_request(root, **changes)), zoo_spec(root), [root], seed_default=0)
