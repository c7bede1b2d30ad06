"""The job's mixture at every level: families that share layers, routers from proxy items, the score in the report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from glue.references.folders import read_config
from glue.references.resolve import examine_job, resolve_job
from glue.specs.errors import InvalidInputError
from glue.specs.job import JobRequest, JobSpec, MixtureSpec
from glue.specs.plan import StageOutcome
from tests.support.in_process import InProcess
from tests.support.tiny_zoo import build_tiny_zoo, job_request, zoo_spec

BEHIND_MERGE = ("resolve", "similarity", "baselines", "search", "merge")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_zoo(tmp_path_factory.mktemp("zoo"))


def alike(root: Path, **changes: Any) -> dict[str, Any]:
    members = [{"name": name, "source": str(root / "models" / name)} for name in ("ant", "bee", "cat")]
    return {"members": members} | changes


def spec_of(root: Path, mixture: dict[str, Any], **zoo_changes: Any) -> JobSpec:
    request = JobRequest.parse(job_request(root, mixture=mixture | {"minimum_share": 0.0}))
    return resolve_job(request, zoo_spec(root, **alike(root, **zoo_changes)), [root], seed_default=0)


@pytest.fixture(scope="module")
def merged(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sequence[StageOutcome]]:
    """Everything up to the families' merges, which no mixture changes, and where the artifacts are."""
    job = InProcess(spec_of(zoo, {}), tmp_path_factory.mktemp("home"))
    job.run()
    return job.home, [outcome for outcome in job.outcomes if outcome.name in BEHIND_MERGE]


@pytest.mark.parametrize(
    ("mixture", "architecture", "stock"),
    [
        ({"level": "ffn"}, "MixtralForCausalLM", True),
        ({"level": "ffn", "router": {"type": "mlp", "input": "sample"}}, "GlueFfnSampleMixtureForCausalLM", False),
        ({"level": "block", "top_k": 2}, "GlueBlockMixtureForCausalLM", False),
        ({"level": "model", "dense_layers": 1}, "GlueBlockMixtureForCausalLM", False),
        ({"level": "model", "router": {"type": "mlp"}}, "GlueModelMixtureForCausalLM", False),
    ],
    ids=["ffn", "ffn-sample-mlp", "block", "hybrid", "model-mlp"],
)
def test_families_are_mixed_at_every_level_and_scored(
    mixture: dict[str, Any],
    architecture: str,
    stock: bool,
    zoo: Path,
    merged: tuple[Path, Sequence[StageOutcome]],
) -> None:
    home, outcomes = merged
    job = InProcess(spec_of(zoo, mixture), home, list(outcomes))
    folder = home / "artifacts" / job.run()["location"]
    report, card = json.loads((folder / "report.json").read_text()), (folder / "README.md").read_text()
    assert read_config(folder)["architectures"] == [architecture]
    assert report["artifact"] == "mixture"
    row = next(row for row in report["models"] if row["name"] == "mixture")
    assert row["report"]["tasks"][0]["items"] == 24
    assert report["mixture"].get("stock", False) == stock
    assert ("custom_code" in card) == (not stock)
    assert report["job"]["job"]["mixture"]["level"] == mixture["level"]


def test_without_a_base_the_trunk_is_the_mean_of_the_experts(
    zoo: Path, merged: tuple[Path, Sequence[StageOutcome]]
) -> None:
    home, outcomes = merged
    job = InProcess(spec_of(zoo, {"level": "block"}, base=None), home, list(outcomes))
    job.run()
    mixed = job.outcome("mixture")
    assert mixed["location"]
    assert [expert["name"] for expert in mixed["experts"]][-1] == "cat"


def refused(root: Path, mixture: dict[str, Any], zoo: dict[str, Any], **changes: Any) -> list[tuple[str, str]]:
    request = JobRequest.parse(job_request(root, mixture=mixture, **changes))
    found = examine_job(request, zoo_spec(root, **zoo), [root], 0).findings.problems
    return [(problem.pointer, problem.code) for problem in found]


def test_families_of_other_shapes_are_told_before_anything_runs(zoo: Path) -> None:
    assert refused(zoo, {"level": "block"}, {}) == [("/members/3/source", "other_shapes")]
    assert refused(zoo, {"level": "ffn"}, {}) == [("/members/3/source", "other_shapes")]
    assert refused(zoo, {"dense_layers": 1}, {}) == [("/members/3/source", "other_shapes")]
    assert refused(zoo, {"level": "model"}, {}) == []


def test_what_cannot_share_layers_is_told(zoo: Path) -> None:
    assert refused(zoo, {"dense_layers": 2}, alike(zoo)) == [("/mixture/dense_layers", "dense_layers")]
    flow = {"strategy": "data_flow", "budget": {"trials": 2}}
    assert refused(zoo, {"level": "block"}, alike(zoo), search=flow) == [("/mixture/level", "other_shapes")]


def test_the_level_decides_what_is_usual() -> None:
    ffn, model = MixtureSpec.parse({"level": "ffn"}), MixtureSpec.parse({})
    assert (ffn.top_k, ffn.router.input) == (2, "token")
    assert (model.top_k, model.router.input) == (1, "sample")
    assert "dense_layers" not in model.as_json()
    with pytest.raises(InvalidInputError, match="routes samples"):
        MixtureSpec.parse({"level": "block", "router": {"input": "token"}})
