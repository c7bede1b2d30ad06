"""Jobs of one build, in one process: each kind gives what its command gives, with a card and, if asked, a report."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from glue.builds.resolve import examine_build
from glue.cli.files import job_request
from glue.merging.run import merge_file
from glue.mixture.run import mix_file
from glue.specs.build import BuildRequest
from glue.specs.errors import GlueError, InvalidInputError
from glue.specs.kinds import parse_request
from glue.stacking.run import stack_file
from tests.support.adapters import write_adapter
from tests.support.builds import build_request, build_spec, config, report_suite
from tests.support.in_process import InProcess
from tests.support.mixtures import silent
from tests.support.tiny_zoo import build_tiny_zoo

KINDS = ("merge", "mixture", "stack")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_zoo(tmp_path_factory.mktemp("zoo"))


def by_command(kind: str, zoo: Path, folder: Path) -> Path:
    """What the command of that kind writes."""
    file, out = folder / "config.yml", folder / "out"
    file.write_text(yaml.safe_dump(config(kind, zoo)))
    if kind == "merge":
        merge_file(file, out, shard_bytes=10**9, seed=7, progress=silent)
    elif kind == "mixture":
        mix_file(file, out, shard_bytes=10**9, seed=7, progress=silent)
    else:
        stack_file(file, out, shard_bytes=10**9, progress=silent)
    return out


def problems_of(zoo: Path, request: dict[str, Any]) -> list[tuple[str, str]]:
    found = examine_build(BuildRequest.parse(request), [zoo], 0)
    assert (found.spec is None) == bool(found.findings.problems)
    return [(problem.pointer, problem.code) for problem in found.findings.problems]


@pytest.mark.parametrize("kind", KINDS)
def test_a_build_writes_what_its_command_writes(kind: str, zoo: Path, tmp_path: Path) -> None:
    job = InProcess(build_spec(kind, zoo, verify="load"), tmp_path / "home")
    result = job.run()
    made = tmp_path / "home" / "artifacts" / result["location"]
    ours, theirs = (
        load_file(made / "model.safetensors"),
        load_file(by_command(kind, zoo, tmp_path) / "model.safetensors"),
    )
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    report = json.loads((made / "report.json").read_text())
    card = (made / "README.md").read_text()
    assert report["models"] == []
    assert report["best_single"] is None
    assert report["job"]["config"].keys() == config(kind, zoo).keys()
    assert str(zoo) not in json.dumps(report) + card
    assert ("custom_code" in card) == report["custom_code"] == (kind == "mixture")
    assert [stage.name for stage in job.outcomes] == ["resolve", "build"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_compares_the_result_with_what_it_was_made_of(kind: str, zoo: Path, tmp_path: Path) -> None:
    job = InProcess(build_spec(kind, zoo, report=report_suite(zoo)), tmp_path)
    result = job.run()
    made = tmp_path / "artifacts" / result["location"]
    report = json.loads((made / "report.json").read_text())
    rows = {row["name"]: row for row in report["models"]}
    assert rows.keys() == {model.name for model in job.spec.models} | {kind}
    best = max((row for row in report["models"] if row["role"] == "input"), key=lambda row: row["report"]["mean"])
    assert result["best_single"] == best["name"]
    gain = 100 * (rows[kind]["report"]["mean"] - best["report"]["mean"])
    assert result["gain_over_best_single"] == pytest.approx(gain, abs=1e-3)
    assert f"**{kind}**" in (made / "README.md").read_text()
    assert (made / "config.json").is_file()


def test_the_same_job_again_ends_in_the_same_digest(zoo: Path, tmp_path: Path) -> None:
    first, second = (InProcess(build_spec("merge", zoo), tmp_path / name).run()["digest"] for name in "ab")
    other = InProcess(build_spec("merge", zoo, seed=8), tmp_path / "c").run()["digest"]
    assert first == second != other
    # As a database gives it back: with its keys in another order.
    reordered = dict(reversed(config("merge", zoo).items()))
    assert InProcess(build_spec("merge", zoo, config=reordered), tmp_path / "d").run()["digest"] == first


def test_every_mistake_of_a_build_is_told_at_once(zoo: Path) -> None:
    wrong = config("merge", zoo) | {"base_model": "/nowhere"}
    wrong["models"][1]["model"] = str(zoo / "nothing")
    found = problems_of(zoo, build_request("merge", zoo, config=wrong, report={"tasks": [{"task": "no-such-task"}]}))
    assert [pointer for pointer, _ in found] == ["/config/base_model", "/config/models/1/model", "/report/tasks/0/task"]


def test_a_mistake_in_the_config_has_its_place(zoo: Path) -> None:
    (unknown,) = problems_of(zoo, build_request("stack", zoo, config={"method": "pile"}))
    assert unknown == ("/config/method", "stack_method")
    found = problems_of(zoo, build_request("merge", zoo, config=config("merge", zoo) | {"speed": 3}))
    assert found == [("/config/speed", "unknown_key")]


def test_experts_that_share_layers_must_be_alike(zoo: Path) -> None:
    unlike = config("mixture", zoo) | {"level": "block"}
    unlike["experts"][1]["source_model"] = str(zoo / "models" / "dog")
    assert problems_of(zoo, build_request("mixture", zoo, config=unlike)) == [
        ("/config/experts/1/source_model", "other_shapes")
    ]


def test_models_of_the_hub_need_the_hub(zoo: Path) -> None:
    remote = {"method": "depth_upscale", "model": "org/model@v1"}
    assert problems_of(zoo, build_request("stack", zoo, config=remote)) == [("/config/model", "no_hub")]


def test_models_of_one_name_keep_apart(zoo: Path) -> None:
    twins = {"method": "concatenate", "models": [str(zoo / "models" / "ant"), f"{zoo / 'models' / 'ant'}/"]}
    spec = build_spec("stack", zoo, config=twins)
    assert [model.name for model in spec.models] == ["ant", "ant-2"]


def test_a_build_that_does_not_fit_its_models_says_so(zoo: Path, tmp_path: Path) -> None:
    unlike = config("merge", zoo)
    unlike["models"][1]["model"] = str(zoo / "models" / "dog")
    with pytest.raises(GlueError) as raised:
        InProcess(build_spec("merge", zoo, config=unlike), tmp_path).run()
    assert raised.value.fault == "user"


def test_requests_are_told_apart_by_their_kind(zoo: Path) -> None:
    assert isinstance(parse_request(build_request("stack", zoo)), BuildRequest)
    with pytest.raises(InvalidInputError, match="merge, mixture, stack"):
        parse_request({"kind": "melt"})
    with pytest.raises(InvalidInputError) as raised:
        parse_request({"zoo": "tiny"})
    assert {problem.pointer for problem in raised.value.problems} >= {"/kind", "/proxy"}


def test_experts_may_be_merges_and_adapters(zoo: Path, tmp_path: Path) -> None:
    write_adapter(zoo / "adapter", zoo / "models" / "cat")
    nested = config("mixture", zoo)
    nested["experts"][0]["source_model"] = {"merge": config("merge", zoo)}
    nested["experts"][1]["source_model"] = str(zoo / "adapter")
    job = InProcess(build_spec("mixture", zoo, config=nested), tmp_path)
    made = tmp_path / "artifacts" / job.run()["location"]
    assert json.loads((made / "config.json").read_text())["expert_names"] == ["merge-0", "adapter"]
    assert {model.name for model in job.spec.models} == {"base-2", "ant", "bee", "adapter"}
    assert str(zoo) not in (made / "README.md").read_text()


def test_routers_of_a_job_learn_from_text_inside_the_roots(zoo: Path, tmp_path: Path) -> None:
    (zoo / "text.jsonl").write_text("".join(json.dumps({"text": f"one two {word}"}) + "\n" for word in ("red", "blue")))
    train = {"data": str(zoo / "text.jsonl"), "steps": 2, "batch": 2, "length": 8}
    learning = config("mixture", zoo) | {"router": {"train": train}}
    job = InProcess(build_spec("mixture", zoo, config=learning), tmp_path / "home")
    made = tmp_path / "home" / "artifacts" / job.run()["location"]
    (tmp_path / "config.yml").write_text(yaml.safe_dump(learning))
    mix_file(tmp_path / "config.yml", tmp_path / "out", shard_bytes=10**9, seed=7, progress=silent)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (made, tmp_path / "out"))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert "text.jsonl" in (made / "README.md").read_text()
    assert str(zoo) not in (made / "README.md").read_text()
    (zoo / "text.jsonl").write_text("{}")
    with pytest.raises(InvalidInputError, match="changed since"):
        InProcess(job.spec, tmp_path / "again").run()
    outside = learning | {"router": {"train": train | {"data": str(tmp_path / "config.yml")}}}
    assert [each for each, _ in problems_of(zoo, build_request("mixture", zoo, config=outside))] == [
        "/config/router/train/data/0"
    ]


def test_a_job_file_may_name_the_file_of_the_command(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "merges").mkdir()
    relative = config("merge", Path("..")) | {"base_model": "../base"}
    (tmp_path / "merges" / "ties.yml").write_text(yaml.safe_dump(relative))
    (tmp_path / "job.yml").write_text(yaml.safe_dump({"kind": "merge", "config": "merges/ties.yml"}))
    found = job_request(tmp_path / "job.yml")
    assert found["config"]["base_model"] == str(tmp_path / "base")
    assert found["config"]["models"][0]["model"] == str(tmp_path / "models" / "ant")
    train = {"router": {"train": {"data": ["text.jsonl", "hf://org/text"]}}}
    (tmp_path / "job.yml").write_text(yaml.safe_dump({"kind": "mixture", "config": config("mixture", zoo) | train}))
    found = job_request(tmp_path / "job.yml")
    assert found["config"]["router"]["train"]["data"] == [str(tmp_path / "text.jsonl"), "hf://org/text"]
