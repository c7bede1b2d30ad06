"""The paper's zoos and jobs, as files: parsed, and looked into against generated models of the same shapes.

The shapes are those of Llama-2-7B and of what was made from it. They are generated, not recorded: no header of
the repositories themselves was at hand.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glue.cli.files import job_request, zoo_request
from glue.references.findings import Findings
from glue.references.hub_access import HubAccess
from glue.references.models import find_models
from glue.references.resolve import resolve_job
from glue.specs.errors import GlueError
from glue.specs.job import JobRequest
from glue.specs.zoo import ZooSpec
from tests.support.hub.pushing import go_online
from tests.support.hub.server import TOKEN, StandIn, hub
from tests.support.hub.shapes import shaped_model

ZOOS = Path(__file__).parents[3] / "examples" / "zoos"
SIZES = {"which2": 2, "which4-chat": 4, "which4-domain": 4, "which8": 8, "which12": 12, "which16": 16}
CODE_LLAMA = {"vocab_size": 32016, "rope_theta": 1_000_000.0, "max_position_embeddings": 16384}
OTHER_SHAPES: dict[str, dict[str, Any]] = {
    "meta-math/MetaMath-Llemma-7B": CODE_LLAMA | {"tokenizer": "code"},
    "codellama/CodeLlama-7b-Instruct-hf": CODE_LLAMA | {"tokenizer": "code"},
    "ise-uiuc/Magicoder-S-CL-7B": CODE_LLAMA | {"tokenizer": "code"},
    "LLM360/CrystalChat": {
        "vocab_size": 32032,
        "architectures": ["CrystalCoderLMHeadModel"],
        "auto_map": {"AutoModelForCausalLM": "modeling_crystalcoder.CrystalCoderLMHeadModel"},
        "tokenizer": "crystal",
    },
}


def zoo(name: str) -> ZooSpec:
    return ZooSpec.parse(zoo_request(ZOOS / f"{name}.yml"))


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """Every repository of the paper's zoos, generated."""
    root = tmp_path_factory.mktemp("paper")
    with hub(root / "hub") as running:
        for source in zoo("which16").sources().values():
            folder = shaped_model(root / source.replace("/", "--"), **OTHER_SHAPES.get(source, {}))
            running.store.add_folder(source, folder, gated=source.startswith("meta-llama/"))
            running.store.repository(source).granted.add("ann")
        yield running


@pytest.fixture
def access(standing: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubAccess:
    go_online(monkeypatch)
    return HubAccess(standing.url, tmp_path / "cache", token=TOKEN)


@pytest.mark.parametrize("name", SIZES)
def test_a_zoo_has_its_members_with_domains_and_prompts(name: str) -> None:
    found = zoo(name)
    assert len(found.members) == SIZES[name]
    assert found.base is not None
    assert all(member.domains and member.prompts for member in found.members)


@pytest.mark.parametrize("name", [name for name in SIZES if name != "which16"])
def test_a_zoo_passes(name: str, access: HubAccess) -> None:
    findings = Findings()
    found = find_models(zoo(name), [], findings, access)
    assert not findings.problems
    assert len(found) == SIZES[name] + 1


def test_sixteen_are_refused_for_the_one_with_code_of_its_own(access: HubAccess) -> None:
    findings = Findings()
    found = find_models(zoo("which16"), [], findings, access)
    assert [(problem.pointer, problem.code) for problem in findings.problems] == [("/members/15/source", "custom_code")]
    assert len({model.tokenizer for model in found}) == 2


@pytest.mark.parametrize("path", sorted((ZOOS / "jobs").glob("*.yml")), ids=lambda path: path.stem)
def test_a_job_passes(path: Path, access: HubAccess) -> None:
    request = JobRequest.parse(job_request(path))
    if request.zoo == "which16":
        with pytest.raises(GlueError, match="code of its own"):
            resolve_job(request, zoo(request.zoo), [ZOOS], 0, access)
        return
    spec = resolve_job(request, zoo(request.zoo), [ZOOS], 0, access)
    assert len(spec.models) == SIZES[request.zoo] + 1
    assert all(model.repo and len(model.commit) == 40 for model in spec.models)


def test_nobody_without_access_to_llama_gets_further(standing: StandIn, access: HubAccess) -> None:
    findings = Findings()
    find_models(zoo("which2"), [], findings, HubAccess(access.endpoint, access.cache))
    assert [(p.pointer, p.code) for p in findings.problems] == [
        ("/base/source", "gated"),
        ("/members/0/source", "gated"),
    ]
