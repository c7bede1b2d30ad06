"""SmolLM2-135M-Instruct merged with itself and with a fine-tune of itself; runs where `SMOLLM2` names its folder."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from glue.checkpoints.reader import Checkpoint
from glue.merging.engine import merge_into, merge_to_folder
from glue.merging.methods import all_methods, method_of
from glue.merging.registry import BaseUse
from glue.specs.expression import Input, Member, Merge

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("SMOLLM2" not in os.environ, reason="SMOLLM2 names no folder with SmolLM2-135M"),
]

NAMES = sorted(all_methods())
OPTIONS: dict[str, dict[str, Any]] = {"slerp": {"t": 0.4}, "nearswap": {"t": 0.001}}
EACH: dict[str, dict[str, float]] = {
    "ties": {"density": 0.5},
    "dare_linear": {"density": 0.7},
    "dare_ties": {"density": 0.7},
    "della": {"density": 0.7},
    "della_linear": {"density": 0.7},
    "breadcrumbs": {"density": 0.7},
    "breadcrumbs_ties": {"density": 0.7},
}
QUESTION, ANSWER = "What is the capital of France?", "Paris"
LESSONS = [
    ("Who wrote Hamlet?", "Hamlet was written by William Shakespeare."),
    ("What do bees make?", "Bees make honey."),
    ("How many legs has a spider?", "A spider has eight legs."),
    ("What is frozen water called?", "Frozen water is called ice."),
]


@pytest.fixture(scope="module")
def source() -> Path:
    return Path(os.environ["SMOLLM2"])


@pytest.fixture(scope="module")
def tuned(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model after a few steps on a few answers."""
    folder = tmp_path_factory.mktemp("tuned")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    for question, answer in LESSONS * 2:
        talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        tokens = tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=True)["input_ids"]
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def merged(name: str, models: tuple[str, ...], base: str) -> Merge:
    method = method_of(name)
    weighted = "weight" in method.per_input.model_fields
    own = ({"weight": 1 / len(models)} if weighted else {}) | EACH.get(name, {})
    inputs = tuple(Input(model=Member(name=model), parameters=own) for model in models)
    origin = None if method.base is BaseUse.NONE else Member(name=base)
    return Merge(method=name, inputs=inputs, base=origin, parameters=OPTIONS.get(name, {}))


def answered(model: Any, source: Path) -> str:
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    talk = [{"role": "user", "content": QUESTION}]
    tokens = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**tokens, max_new_tokens=24, do_sample=False)
    text: str = tokenizer.decode(written[0, tokens["input_ids"].shape[1] :])
    return text


@pytest.mark.parametrize("name", NAMES)
def test_merged_with_itself_it_is_itself(name: str, source: Path, tmp_path: Path) -> None:
    method = method_of(name)
    copies = ("self",) * min(method.most or 3, 3)
    merge_to_folder(
        merged(name, copies, "self"), {"self": source}, tmp_path / "out", dtype="float32", shard_bytes=10**9, token=1,
        progress=lambda fraction, message: None,
    )  # fmt: skip
    with Checkpoint.open(source) as own, Checkpoint.open(tmp_path / "out") as out:
        assert out.tensors.keys() == own.tensors.keys()
        assert out.config["tie_word_embeddings"]
        for tensor in own.tensors:
            torch.testing.assert_close(out.read(tensor), own.read(tensor, torch.float32), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_merged_with_its_fine_tune_it_still_answers(name: str, source: Path, tuned: Path, resident: Any) -> None:
    method = method_of(name)
    models = ("tuned", "self") if method.fewest <= 2 and method.most != 1 else ("tuned",)
    with Checkpoint.open(source) as own, Checkpoint.open(tuned) as other:
        merge_into(merged(name, models, "self"), {"self": own, "tuned": other}, resident)
    assert ANSWER in answered(resident, source)


@pytest.fixture(scope="module")
def resident(source: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)


def test_the_fine_tune_has_moved(source: Path, tuned: Path) -> None:
    with Checkpoint.open(source) as own, Checkpoint.open(tuned) as other:
        name = "model.layers.3.mlp.up_proj.weight"
        assert not torch.equal(own.read(name, torch.float32), other.read(name, torch.float32))
    assert ANSWER in answered(AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32), source)
