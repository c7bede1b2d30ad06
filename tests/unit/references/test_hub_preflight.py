"""Zoos on the Hub, looked into without their weights: names, pins, rights, and every mistake at once."""

import json
import time
from pathlib import Path

import pytest

from glue.references.findings import Findings
from glue.references.hub_access import HubAccess, HubUnavailableError
from glue.references.hub_names import HubReference, hub_reference, is_hub_source
from glue.references.models import find_models
from glue.specs.errors import InvalidInputError
from glue.specs.zoo import ZooSpec
from tests.support.hub.faults import Fault
from tests.support.hub.server import OWNER, TOKEN, StandIn
from tests.support.hub.shapes import shaped_model
from tests.support.model_folders import write_model

MEGABYTE = 1e6


def access(standing: StandIn, tmp_path: Path, token: str | None = None) -> HubAccess:
    return HubAccess(standing.url, tmp_path / "cache", token=token)


def zoo_of(*sources: str) -> ZooSpec:
    members = [{"name": f"m{number}", "source": source} for number, source in enumerate(sources)]
    return ZooSpec.parse({"name": "zoo", "members": members})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", HubReference("org/name")),
        ("org/name@v1.0", HubReference("org/name", "v1.0")),
        ("hf://org/name", HubReference("org/name")),
        ("hf://org/na.me_x@refs/pr/3", HubReference("org/na.me_x", "refs/pr/3")),
    ],
)
def test_names_of_the_hub(source: str, expected: HubReference) -> None:
    assert is_hub_source(source)
    assert hub_reference(source) == expected


@pytest.mark.parametrize("source", ["/models/a", "./a/b", "../a/b", "a/b/c", "name", "org/name@", "~/a"])
def test_other_sources_are_folders(source: str) -> None:
    assert not is_hub_source(source)


@pytest.mark.parametrize("source", ["hf://name", "hf://org/na--me", "hf://org/../x", "hf://org/name@../../x"])
def test_names_that_the_hub_does_not_have(source: str) -> None:
    with pytest.raises(InvalidInputError):
        hub_reference(source)


def test_a_branch_is_pinned_to_its_commit(standing: StandIn, tmp_path: Path) -> None:
    first = standing.store.add_folder(f"{OWNER}/a", write_model(tmp_path / "a"))
    way = access(standing, tmp_path)
    (found,) = find_models(zoo_of(f"{OWNER}/a"), [], Findings(), way)
    (tmp_path / "a" / "config.json").write_text((tmp_path / "a" / "config.json").read_text() + " ")
    second = standing.store.add_folder(f"{OWNER}/a", tmp_path / "a")
    (moved,) = find_models(zoo_of(f"{OWNER}/a"), [], Findings(), way)
    (pinned,) = find_models(zoo_of(f"{OWNER}/a@{first}"), [], Findings(), way)
    assert (found.commit, moved.commit, pinned.commit) == (first, second, first)
    assert found.folder == pinned.folder != moved.folder
    assert found.folder.is_relative_to(tmp_path / "cache")


def test_what_a_token_opened_does_not_open_for_others(standing: StandIn, tmp_path: Path) -> None:
    standing.store.add_folder(f"{OWNER}/secret", write_model(tmp_path / "a"), private=True)
    standing.store.add_folder(f"{OWNER}/gated", write_model(tmp_path / "b"), gated=True)
    zoo = zoo_of(f"{OWNER}/secret", f"{OWNER}/gated")
    assert len(find_models(zoo, [], Findings(), access(standing, tmp_path, TOKEN))) == 2
    findings = Findings()
    assert find_models(zoo, [], findings, access(standing, tmp_path)) == []
    assert [problem.code for problem in findings.problems] == ["no_repository", "gated"]


def test_offline_what_was_looked_at_before_is_enough(
    standing: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing.store.add_folder(f"{OWNER}/a", write_model(tmp_path / "a"))
    way = access(standing, tmp_path)
    (found,) = find_models(zoo_of(f"{OWNER}/a"), [], Findings(), way)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before, findings = len(standing.requests()), Findings()
    assert find_models(zoo_of(f"{OWNER}/a", f"{OWNER}/b"), [], findings, way) == [found]
    assert [problem.code for problem in findings.problems] == ["offline"]
    assert find_models(zoo_of(f"{OWNER}/a"), [], Findings(), access(standing, tmp_path, TOKEN)) == []
    assert len(standing.requests()) == before


@pytest.mark.parametrize("kind", ["status", "drop", "truncate", "corrupt"])
def test_faults_of_the_hub_pass(kind: str, standing: StandIn, tmp_path: Path) -> None:
    standing.store.add_folder(f"{OWNER}/a", write_model(tmp_path / "a"))
    for path in ("/api/models/", "/resolve/"):
        with standing.faults.failing(Fault(kind, "GET", path, times=2, status=503, size=3)):  # type: ignore[arg-type]
            way = HubAccess(standing.url, tmp_path / f"cache {path.strip('/').replace('/', '-')}")
            assert len(find_models(zoo_of(f"{OWNER}/a"), [], Findings(), way)) == 1


def test_a_hub_that_stays_away_is_nobodys_mistake(standing: StandIn, tmp_path: Path) -> None:
    with (
        standing.faults.failing(Fault("status", "GET", "", times=99, status=503)),
        pytest.raises(HubUnavailableError),
    ):
        find_models(zoo_of(f"{OWNER}/a"), [], Findings(), access(standing, tmp_path))


def test_sixteen_models_of_seven_billion_parameters(standing: StandIn, tmp_path: Path) -> None:
    sources = []
    for number in range(16):
        folder = shaped_model(tmp_path / f"m{number}")
        sources.append(f"{OWNER}/m{number}")
        standing.store.add_folder(sources[-1], folder)
    total = sum(e.size for r in standing.store.repositories.values() for e in r.head("main").files.values())
    assert total > 16 * 13e9
    began, findings = time.monotonic(), Findings()
    found = find_models(zoo_of(*sources), [], findings, access(standing, tmp_path))
    seconds = time.monotonic() - began
    assert not findings.problems
    assert len(found) == 16
    assert standing.sent() < 10 * MEGABYTE
    assert seconds < 20
    disk = sum(path.stat().st_blocks * 512 for path in (tmp_path / "cache").rglob("*"))
    assert disk < 60 * MEGABYTE
    before = standing.sent()
    assert find_models(zoo_of(*sources), [], Findings(), access(standing, tmp_path)) == found
    assert standing.sent() - before < MEGABYTE, "a second look moved headers again"


def test_every_planted_problem_at_once(standing: StandIn, tmp_path: Path) -> None:
    def planted(name: str, **config: object) -> Path:
        return shaped_model(tmp_path / name, num_hidden_layers=2, **config)  # type: ignore[arg-type]

    folders = {
        "good": planted("good"),
        "code": planted("code", auto_map={"AutoModelForCausalLM": "x.Y"}),
        "quantised": planted("quantised", quantization_config={"bits": 4}),
        "images": planted("images", vision_config={}),
        "pickle": planted("pickle"),
        "shardless": planted("shardless"),
        "damaged": planted("damaged"),
        "adapter": planted("adapter"),
        "gated": planted("gated"),
        "private": planted("private"),
    }
    for name in ("pickle", "adapter"):
        for shard in (*folders[name].glob("*.safetensors"), folders[name] / "model.safetensors.index.json"):
            shard.unlink()
    (folders["pickle"] / "pytorch_model.bin").write_bytes(b"no")
    (folders["adapter"] / "config.json").unlink()
    (folders["adapter"] / "adapter_config.json").write_text("{}")
    (folders["shardless"] / "model-00001-of-00001.safetensors").unlink()
    with (folders["damaged"] / "model-00001-of-00001.safetensors").open("r+b") as shard:
        shard.truncate(2_000_000)
    for name, folder in folders.items():
        standing.store.add_folder(f"{OWNER}/{name}", folder, private=name == "private", gated=name == "gated")
    sources = [*(f"{OWNER}/{name}" for name in folders), f"{OWNER}/missing", f"{OWNER}/good@v9"]
    findings = Findings()
    found = find_models(zoo_of(*sources), [], findings, access(standing, tmp_path))
    assert [model.name for model in found] == ["m0"]
    told = {}
    for problem in findings.problems:
        told.setdefault(problem.pointer, problem.code)
        assert problem.fix
    codes = [told[f"/members/{number}/source"] for number in range(1, len(sources))]
    assert codes == [
        "custom_code", "quantised", "not_text_only", "pickle", "missing_shards", "corrupt", "adapter",
        "gated", "no_repository", "no_repository", "no_revision",
    ]  # fmt: skip


def test_the_licence_comes_from_the_card(standing: StandIn, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "a")
    (folder / "README.md").write_text("---\nlicense: llama2\n---\n# a\n")
    standing.store.add_folder(f"{OWNER}/a", folder)
    (found,) = find_models(zoo_of(f"{OWNER}/a"), [], Findings(), access(standing, tmp_path))
    (local,) = find_models(zoo_of(str(folder)), [tmp_path], Findings())
    assert found.licence == local.licence == "llama2"
    assert json.dumps(found.repo) == f'"{OWNER}/a"'
