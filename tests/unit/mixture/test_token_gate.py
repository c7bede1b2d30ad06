"""Every expert answers every token, and a gate on their states weighs the logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from glue.mixture.build import ExpertSource, build_fused
from glue.mixture.load import load_model
from glue.specs.errors import IncompatibleModelsError
from tests.support.mixtures import padded, prompts, silent
from tests.support.models import tiny_llama, tiny_neox, tiny_pair_neox, tiny_qwen3

LENGTH: dict[str, Any] = {"max_new_tokens": 10, "min_new_tokens": 10}
WAYS: list[Any] = [
    pytest.param({}, id="greedy"),
    pytest.param({"do_sample": True, "top_k": 20}, id="sampling"),
    pytest.param({"num_beams": 3}, id="beams"),
]


def fuse(out: Path, folders: list[Path]) -> Path:
    sources = [ExpertSource(folder.name, folder) for folder in folders]
    own: Any = {"dtype": "float32", "shard_bytes": 1_000_000, "token": 1, "progress": silent}
    build_fused(out, sources, folders[0], **own)
    return out


def loaded(folder: Path, seed: int | None = None) -> Any:
    """The mixture, with a random gate if there is a seed."""
    model: Any = load_model(folder, torch.float32, "cpu")
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.token_gate.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("experts")
    wide = tiny_qwen3(root / "qwen3", seed=3, hidden_size=24)
    return [tiny_llama(root / "llama", seed=1), tiny_neox(root / "neox", seed=2), wide]


@pytest.fixture(scope="module")
def folder(experts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fuse(tmp_path_factory.mktemp("fused") / "mixture", experts)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return loaded(folder, seed=5)


@pytest.fixture(scope="module")
def alone(experts: list[Path]) -> list[PreTrainedModel]:
    return [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in experts]


@torch.no_grad()
def said(experts: list[PreTrainedModel], ids: Tensor) -> tuple[list[Tensor], Tensor]:
    """Each expert's logits, and all their last states beside each other."""
    outputs = [expert(ids, output_hidden_states=True) for expert in experts]
    return [output.logits for output in outputs], torch.cat([output.hidden_states[-1] for output in outputs], dim=-1)


@torch.no_grad()
def test_logits_are_the_gates_sum(model: Any, alone: list[PreTrainedModel]) -> None:
    ids = prompts(3, 9)
    logits, states = said(alone, ids)
    gate = states @ model.token_gate.weight.T + model.token_gate.bias
    expected = sum(weight[..., None] * each for weight, each in zip(gate.softmax(-1).unbind(-1), logits, strict=True))
    output = model(ids, output_router_logits=True)
    assert torch.allclose(output.logits, expected, atol=1e-5)
    assert torch.allclose(output.router_logits, gate, atol=1e-5)
    assert len(output.router_logits.argmax(-1).unique()) > 1, "one expert has everything"


@torch.no_grad()
def test_before_it_learns_it_takes_the_mean(folder: Path, alone: list[PreTrainedModel]) -> None:
    ids = prompts(2, 7)
    logits, _ = said(alone, ids)
    assert torch.allclose(loaded(folder)(ids).logits, torch.stack(logits).mean(0), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("expert", range(3))
def test_a_gate_for_one_expert_is_that_expert(folder: Path, alone: list[PreTrainedModel], expert: int) -> None:
    model, ids = loaded(folder), prompts(3, 9)
    model.token_gate.bias[expert] = 1e4
    assert torch.equal(model(ids).logits, said(alone, ids)[0][expert])
    assert torch.equal(model.generate(ids, **LENGTH), alone[expert].generate(ids, **LENGTH))  # type: ignore[operator]


@torch.no_grad()
def test_identical_experts_are_the_dense_model(experts: list[Path], tmp_path: Path) -> None:
    model = loaded(fuse(tmp_path / "same", [experts[0]] * 3), seed=1)
    dense, ids = AutoModelForCausalLM.from_pretrained(experts[0]).eval(), prompts(4, 11)
    assert torch.allclose(model(ids).logits, dense(ids).logits, atol=1e-5)
    assert torch.equal(model.generate(ids, **LENGTH), dense.generate(ids, **LENGTH))


@pytest.mark.parametrize("way", WAYS)
def test_cached_equals_uncached(model: Any, way: dict[str, Any]) -> None:
    answers = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        answers.append(model.generate(prompts(4, 9), use_cache=use_cache, **LENGTH, **way))
    assert torch.equal(*answers)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_batch_mates_change_nothing(model: Any, side: str) -> None:
    samples = [prompts(1, length, seed=length)[0] for length in (3, 12, 5, 8)]
    ids, mask = padded(samples, side)
    together = model.generate(ids, attention_mask=mask, **LENGTH)
    for row, sample in enumerate(samples):
        assert torch.equal(together[row, ids.shape[1] :], model.generate(sample[None], **LENGTH)[0, len(sample) :])


@torch.no_grad()
def test_the_gate_reads_what_is_kept(model: Any) -> None:
    ids = prompts(2, 9)
    whole, last = model(ids, output_router_logits=True), model(ids, output_router_logits=True, logits_to_keep=2)
    assert torch.allclose(last.logits, whole.logits[:, -2:], atol=1e-5)
    assert torch.allclose(last.router_logits, whole.router_logits[:, -2:], atol=1e-5)


def test_the_gate_learns_alone(folder: Path) -> None:
    model, ids = loaded(folder), prompts(4, 9)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    model.token_gate.requires_grad_(True)
    first = model(ids, labels=ids).loss
    first.backward()
    torch.optim.SGD(model.token_gate.parameters(), lr=0.1).step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"token_gate.weight", "token_gate.bias"}
    assert model(ids, labels=ids).loss < first


@torch.no_grad()
def test_it_is_saved_and_loaded_again(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    ids = prompts(2, 9)
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_half_precision_leaves_the_gate_alone(folder: Path) -> None:
    model: Any = load_model(folder, torch.bfloat16, "cpu")
    assert model.experts[0].dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.token_gate.parameters()} == {torch.float32}


@torch.no_grad()
def test_an_expert_may_lie_on_the_disk(folder: Path, tmp_path: Path) -> None:
    places = {"token_gate": "cpu", "experts.0": "cpu", "experts.1": "disk", "experts.2": "disk"}
    model, ids = loaded(folder), prompts(2, 9)
    placed = type(model).from_pretrained(folder, device_map=places, offload_folder=tmp_path)
    assert torch.equal(placed(ids).logits, model(ids).logits)


def test_everybody_is_asked(folder: Path) -> None:
    model = loaded(folder)
    assert model.route(prompts(2, 3)).tolist() == [[pytest.approx(1 / 3)] * 3] * 2
    assert model.expert_usage == [2, 2, 2]
    with pytest.raises(ValueError, match="leave out routing"):
        model(prompts(1, 3), routing=torch.tensor([[1.0, 0.0, 0.0]]))


def test_logits_of_several_tokenizers_are_not_mixed(experts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(IncompatibleModelsError, match="have different tokenizers"):
        fuse(tmp_path / "mixture", [experts[0], tiny_pair_neox(tmp_path / "pairs")])
