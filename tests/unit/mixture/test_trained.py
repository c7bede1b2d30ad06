"""A built mixture learns from files of text: gates in its shards, everything else untouched, resumable to the byte."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from glue.checkpoints.manifest import build_manifest
from glue.checkpoints.reader import Checkpoint
from glue.mixture.ffn import build_ffn_mixture
from glue.mixture.language_training import LanguageTraining
from glue.mixture.load import load_model
from glue.mixture.router import RouterWeights
from glue.mixture.trained import RECORD_FILE, idle_notes, train_mixture
from glue.mixture.writing import ExpertSource, Output
from tests.support.mixtures import mix, silent
from tests.support.models import char_tokenizer, tiny_llama

QUICK = LanguageTraining(
    steps=12, learning_rate=0.3, batch=4, accumulate=1, schedule="cosine", warmup=0.0, balance=0.01,
    autocast=False, save_every=5, seed=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("experts")
    return [tiny_llama(root / name, seed=seed) for seed, name in enumerate("ab")]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    rows = [{"prompt": f"{number}+{number}=", "response": str(2 * number)} for number in range(30)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def built(level: str, out: Path, experts: list[Path], dtype: str = "float32") -> Path:
    if level == "model":
        return mix(out, experts, RouterWeights(torch.zeros(2, 16), torch.zeros(16)), dtype=dtype, shard_bytes=9_000)
    sources = [ExpertSource(folder.name, folder) for folder in experts]
    own: dict[str, Any] = {"dtype": dtype, "shard_bytes": 9_000, "token": 1, "progress": silent}
    build_ffn_mixture(out, sources, torch.zeros(2, 2, 16), None, experts[0], top_k=2, **own)
    return out


def train(folder: Path, text: Path, training: LanguageTraining = QUICK, progress: Any = silent) -> tuple[str, ...]:
    output = Output(folder, 9_000, 1, progress)
    own: dict[str, Any] = {"tokenizer": char_tokenizer(), "experts": ["a", "b"], "length": 64, "device": "cpu"}
    return train_mixture(output, [text], training, **own)


@pytest.mark.parametrize("level", ["model", "ffn"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gates_are_learned_and_every_other_tensor_keeps_its_bytes(
    level: str, dtype: str, experts: list[Path], text: Path, tmp_path: Path
) -> None:
    before = built(level, tmp_path / "before", experts, dtype)
    after = built(level, tmp_path / "after", experts, dtype)
    train(after, text, replace(QUICK, autocast=dtype == "bfloat16"))
    with Checkpoint.open(before) as old, Checkpoint.open(after) as new:
        assert old.tensors.keys() == new.tensors.keys()
        changed = {name for name in old.tensors if not torch.equal(old.read(name), new.read(name))}
        assert all(old.info(name).dtype == new.info(name).dtype for name in old.tensors)
    gates = (
        {"sample_router.weight"}
        if level == "model"
        else {f"model.layers.{i}.block_sparse_moe.gate.weight" for i in (0, 1)}
    )
    assert changed == gates
    assert {path.name for path in after.iterdir()} - {path.name for path in before.iterdir()} == {RECORD_FILE}
    load_model(after, torch.float32, "cpu")
    steps = json.loads((after / RECORD_FILE).read_text())["steps"]
    assert steps[-1]["loss"] < steps[0]["loss"]


@pytest.mark.parametrize("moment", [0.1, 0.5, 0.97])
def test_a_killed_training_ends_in_the_same_folder(
    moment: float, experts: list[Path], text: Path, tmp_path: Path
) -> None:
    whole, killed = (built("ffn", tmp_path / name, experts) for name in ("whole", "killed"))
    told = train(whole, text)
    child = os.fork()
    if child == 0:

        def kill(fraction: float, text: str) -> None:
            if fraction > moment:
                os.kill(os.getpid(), signal.SIGKILL)

        train(killed, text, progress=kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert train(killed, text) == told
    assert build_manifest(killed) == build_manifest(whole)
    # Done is done: another start changes nothing.
    train(killed, text)
    assert build_manifest(killed) == build_manifest(whole)


def test_experts_that_are_hardly_preferred_are_told() -> None:
    assert idle_notes({"x": (0.5, 0.5)}, ["a", "b"]) == ()
    assert "a is hardly ever preferred;" in idle_notes({"x": (0.0, 1.0)}, ["a", "b"])[0]
    assert (
        "b is hardly ever preferred in 2 of 3 routers"
        in idle_notes({"x": (1.0, 0.0), "y": (0.5, 0.5), "z": (0.999, 0.001)}, ["a", "b"])[0]
    )
