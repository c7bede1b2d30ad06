"""The built folder in a process that has torch and transformers and nothing of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glue.mixture.block import build_block_mixture
from glue.mixture.build import build_fused
from glue.mixture.ffn import build_ffn_mixture
from glue.mixture.ffn_own import build_own_ffn_mixture
from glue.mixture.gates import random_gates
from glue.mixture.load import load_model
from glue.mixture.router import RouterWeights
from glue.mixture.writing import ExpertSource
from tests.support.hub.server import TOKEN, hub
from tests.support.mixtures import MixtureFolders, mix, padded, prompts, silent
from tests.support.models import char_tokenizer, tiny_llama, tiny_pair_neox

SCRIPT = """
import json, logging, sys, warnings

class OurPackagesAreMissing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"glue", "api", "workers", "migrations", "tests", "examples"}:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, OurPackagesAreMissing())
try:
    import glue
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("our package is importable: the test shows nothing")

warnings.simplefilter("error")
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

class Complain(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.WARNING:
            raise SystemExit(f"warned: {record.getMessage()}")

transformers_logging.disable_progress_bar()
transformers_logging.add_handler(Complain())
torch.set_num_threads(1)
request = json.loads(sys.argv[1])
ids, mask = torch.tensor(request["ids"]), torch.tensor(request["mask"])

def examine(folder, out):
    model, findings = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    answers = model.generate(ids, attention_mask=mask, max_new_tokens=8)
    routing = model.route(ids, attention_mask=mask).tolist() if hasattr(model, "route") else None
    # Experts with a tokenizer of their own have no logits for these ids.
    given = {"attention_mask": mask}
    if any(getattr(model, "expert_tokenizers", ())):
        given["routing"] = torch.eye(len(model.experts))[[0] * len(ids)]
    model.train()
    output = model(ids, labels=ids, **given)
    output.loss.backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    model.eval().save_pretrained(out)
    again = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    with torch.no_grad():
        same = torch.equal(again(ids, **given).logits, model(ids, **given).logits)
    answered = [each.generate(ids, attention_mask=mask, max_new_tokens=8) for each in (again, model)]
    return {
        "findings": {kind: sorted(keys) for kind, keys in findings.items()},
        "answers": answers.tolist(),
        "routing": routing,
        "round_trip": same and torch.equal(*answered),
        "text": tokenizer.decode(tokenizer("12+3=")["input_ids"]),
    }

print(json.dumps({name: examine(folder, f"saved-{name}") for name, folder in request["folders"].items()}))
"""


LEVELS = ("model", "tokenizers", "fused", "block", "ffn", "ffn-tokens", "ffn-samples")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, built: MixtureFolders) -> dict[str, Path]:
    """A mixture of each level."""
    root = tmp_path_factory.mktemp("levels")
    experts = [ExpertSource(name, tiny_llama(root / name, seed=seed)) for seed, name in enumerate("ab")]
    own = {"dtype": "float32", "shard_bytes": 1_000_000, "token": 1, "progress": silent}
    tokenizer = experts[0].folder
    router = RouterWeights(random_gates(2, 2, 16, seed=1), torch.zeros(2, 16))
    build_block_mixture(root / "block", experts, router, None, tokenizer, top_k=1, **own)
    build_ffn_mixture(root / "ffn", experts, random_gates(2, 2, 16, seed=1), None, tokenizer, top_k=2, **own)
    for name, samples in (("ffn-tokens", False), ("ffn-samples", True)):
        build_own_ffn_mixture(
            root / name, experts, router, None, tokenizer, routes_samples=samples, top_k=1 + samples, **own
        )
    build_fused(root / "fused", experts, tokenizer, **own)
    mix(root / "tokenizers", [tokenizer, tiny_pair_neox(root / "pairs", seed=2)])
    return {"model": built.folder} | {name: root / name for name in LEVELS[1:]}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> dict[str, Any]:
    """What the bare process found, for each level."""
    root = tmp_path_factory.mktemp("bare")
    ids, mask = _batch()
    named = {level: str(folder) for level, folder in folders.items()}
    request = json.dumps({"ids": ids.tolist(), "mask": mask.tolist(), "folders": named})
    # -P and a folder elsewhere: nothing of ours is found by the current directory.
    command = [sys.executable, "-P", "-c", SCRIPT, request]
    environment = {"HOME": str(root), "HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _batch() -> tuple[Tensor, Tensor]:
    return padded([prompts(1, length, seed=length)[0] for length in (9, 4, 7, 12, 5, 8)], "left")


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_missing_or_unexpected(bare: dict[str, Any], level: str) -> None:
    assert not any(bare[level]["findings"].values())


@pytest.mark.parametrize("level", LEVELS)
def test_it_generates_and_routes_the_same(bare: dict[str, Any], folders: dict[str, Path], level: str) -> None:
    ids, mask = _batch()
    model: Any = load_model(folders[level], torch.float32, "cpu")
    assert bare[level]["answers"] == model.generate(ids, attention_mask=mask, max_new_tokens=8).tolist()
    if hasattr(model, "route"):
        assert bare[level]["routing"] == model.route(ids, mask).tolist()


@pytest.mark.parametrize("level", LEVELS)
def test_it_trains_saves_and_loads_again(bare: dict[str, Any], level: str) -> None:
    assert bare[level]["round_trip"] is True


@pytest.mark.parametrize("level", LEVELS)
def test_the_tokenizer_came_along(bare: dict[str, Any], level: str) -> None:
    assert bare[level]["text"] == "12+3="


FROM_THE_HUB = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("glue", "api", "workers"):
            raise ImportError("our packages are not here")
sys.meta_path.insert(0, Refuse())
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
logging.disable_progress_bar()
model = AutoModelForCausalLM.from_pretrained("ann/mixture", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("ann/mixture", trust_remote_code=True)
texts = ["12+3=", "def f(x):", "q", "an answer"]
prompts = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
print(model.generate(**prompts, max_new_tokens=8, do_sample=False).tolist())
model.push_to_hub("ann/again")
model.save_pretrained("folder", push_to_hub=True, repo_id="ann/folder")
"""


def test_tokenizers_come_from_the_hub_and_go_there(folders: dict[str, Path], tmp_path: Path) -> None:
    with hub(tmp_path / "hub") as standing:
        standing.store.add_folder("ann/mixture", folders["tokenizers"], private=True)
        environment = standing.environment(TOKEN) | {"HF_HOME": str(tmp_path / "user")}
        command = [sys.executable, "-P", "-c", FROM_THE_HUB]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        files = {name: set(standing.store.repository(name).head("main").files) for name in ("ann/again", "ann/folder")}
    model: Any = load_model(folders["tokenizers"], torch.float32, "cpu")
    texts = ["12+3=", "def f(x):", "q", "an answer"]
    given = char_tokenizer()(texts, padding=True, padding_side="left", return_tensors="pt")
    assert model.route(**given).sum(0).min() > 0, "only one expert answers"
    answers = model.generate(**given, max_new_tokens=8, do_sample=False).tolist()
    assert json.loads(done.stdout.splitlines()[-1]) == answers
    for held in files.values():
        assert {"tokenizer.json", "tokenizer_1/tokenizer.json", "model.safetensors", "config.json"} <= held
