"""Adapters as entries of a zoo: found with the model that they lie on, on disk and on the Hub, checked by shapes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from glue.checkpoints.adapter import open_checkpoint
from glue.checkpoints.guarded import convert_in_a_process
from glue.references.findings import Findings
from glue.references.hub_access import HubAccess
from glue.references.hub_download import download
from glue.references.licences import licences_of
from glue.references.models import FoundModel, find_models
from glue.specs.zoo import ZooSpec
from tests.support.adapters import write_adapter
from tests.support.hub.server import OWNER, StandIn
from tests.support.models import tiny_llama

BASE, LORA = f"{OWNER}/base", f"{OWNER}/lora"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


def find(source: str, tmp_path: Path, standing: StandIn | None = None) -> tuple[list[FoundModel], Findings]:
    zoo = ZooSpec.parse({"name": "zoo", "members": [{"name": "a", "source": source}]})
    findings = Findings()
    way = HubAccess(standing.url, tmp_path / "cache") if standing else None
    return find_models(zoo, [tmp_path], findings, way), findings


def refused(source: str, tmp_path: Path, standing: StandIn | None = None) -> str:
    found, findings = find(source, tmp_path, standing)
    assert not found
    (problem,) = findings.problems
    assert problem.pointer == "/members/0/source"
    assert problem.fix
    return f"{problem.code}: {problem.detail}"


@pytest.mark.parametrize("written", ["{lora}", "{model}+{lora}"])
def test_a_folder_with_the_model_that_it_names(written: str, model: Path, tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "lora", model)
    (found,), findings = find(written.format(model=model, lora=lora), tmp_path)
    assert not findings.problems
    assert found.folder == model
    assert found.adapter is not None
    assert found.adapter.folder == lora
    assert found.adapter.commit != found.commit


@pytest.mark.parametrize("written", [LORA, f"{BASE}+{LORA}", f"hf://{BASE}@main+hf://{LORA}"])
def test_a_repository_with_the_one_that_it_names(written: str, standing: StandIn, model: Path, tmp_path: Path) -> None:
    (model / "README.md").write_text("---\nlicense: llama2\n---\n")
    commit = standing.store.add_folder(BASE, model)
    lora = write_adapter(tmp_path / "lora", model, base=BASE)
    (lora / "README.md").write_text("---\nlicense: mit\n---\n")
    own = standing.store.add_folder(LORA, lora)
    (found,), findings = find(written, tmp_path, standing)
    assert not findings.problems
    assert found.adapter is not None
    assert (found.repo, found.commit, found.adapter.repo, found.adapter.commit) == (BASE, commit, LORA, own)
    assert licences_of([found]) == {"a": "llama2", "a (adapter)": "mit"}


def test_a_named_revision_is_taken(standing: StandIn, model: Path, tmp_path: Path) -> None:
    first = standing.store.add_folder(BASE, model)
    lora = write_adapter(tmp_path / "lora", model, base=BASE)
    settings = json.loads((lora / "adapter_config.json").read_text()) | {"revision": first}
    (lora / "adapter_config.json").write_text(json.dumps(settings))
    standing.store.add_folder(LORA, lora)
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    assert standing.store.add_folder(BASE, model) != first
    (found,), _ = find(LORA, tmp_path, standing)
    assert found.commit == first


def test_pickled_adapters_of_the_hub_are_converted(standing: StandIn, model: Path, tmp_path: Path) -> None:
    standing.store.add_folder(BASE, model)
    lora = write_adapter(tmp_path / "lora", model, base=BASE)
    tensors = load_file(lora / "adapter_model.safetensors")
    torch.save(tensors, lora / "adapter_model.bin")
    (lora / "adapter_model.safetensors").rename(tmp_path / "expected.safetensors")
    own = standing.store.add_folder(LORA, lora)
    (found,), _ = find(LORA, tmp_path, standing)
    assert found.adapter is not None
    way = HubAccess(standing.url, tmp_path / "cache")
    assert download(LORA, own, way, lambda *_: None, convert_in_a_process) == found.adapter.folder
    converted = load_file(found.adapter.folder / "adapter_model.safetensors")
    assert converted.keys() == tensors.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in tensors.items())
    with open_checkpoint([model, found.adapter.folder]) as changed, open_checkpoint([model]) as plain:
        name = "model.layers.0.self_attn.q_proj.weight"
        assert not torch.equal(changed.read(name), plain.read(name))


def test_what_a_repository_names_is_no_folder_of_ours(standing: StandIn, model: Path, tmp_path: Path) -> None:
    standing.store.add_folder(LORA, write_adapter(tmp_path / "lora", model, base=str(model)))
    assert refused(LORA, tmp_path, standing).startswith("adapter: a: the adapter was trained on")


def test_an_adapter_without_a_model(model: Path, tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "lora", model, base="")
    assert "does not say which model" in refused(str(lora), tmp_path)


def test_a_model_outside_the_roots(model: Path, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    lora = write_adapter(tmp_path / "inner" / "lora", model)
    zoo = ZooSpec.parse({"name": "zoo", "members": [{"name": "a", "source": str(lora)}]})
    findings = Findings()
    assert not find_models(zoo, [tmp_path / "inner"], findings)
    assert findings.problems[0].code == "outside_roots"


def test_a_model_of_another_size(model: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", intermediate_size=48)
    lora = write_adapter(tmp_path / "lora", other)
    assert "down_proj" in refused(f"{model}+{lora}", tmp_path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias"),
        ({"alpha_pattern": {"(a+)+b": 2}}, "simple expression"),
        ({"alpha_pattern": {".*a.*b.*c.*d": 2}}, "simple expression"),
        ({"alpha_pattern": {"(": 2}}, "simple expression"),
        ({"alpha_pattern": {"a?" * 60 + "a" * 60: 2}}, "simple expression"),
        ({"alpha_pattern": {"(|a)" * 40 + "b": 2}}, "simple expression"),
        ({"alpha_pattern": {r"\\*" * 5: 2}}, "simple expression"),
        ({"alpha_pattern": {"a{99999999999}": 2}}, "simple expression"),
        ({"alpha_pattern": {"q_proj": "2"}}, "lora_alpha"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern"),
    ],
)
def test_other_kinds_are_refused(settings: dict[str, object], reason: str, model: Path, tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "lora", model)
    kept = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps(kept | settings))
    assert reason in refused(str(lora), tmp_path)


def test_an_adapter_on_an_adapter(model: Path, tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "lora", model)
    second = write_adapter(tmp_path / "second", model, base=str(lora))
    found, findings = find(str(second), tmp_path)
    assert not found
    assert findings.problems[0].code == "adapter"


def test_a_plus_in_a_folders_name(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "c++" / "model")
    (found,), findings = find(str(folder), tmp_path)
    assert not findings.problems
    assert (found.folder, found.adapter) == (folder, None)
