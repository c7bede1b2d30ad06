"""The built folder in a process that has torch and transformers and nothing of ours."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import PreTrainedModel

from tests.support.mixtures import MixtureFolders, padded, prompts

SCRIPT = """
import importlib.util, json, logging, sys, warnings

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
folder, request = sys.argv[1], json.loads(sys.argv[2])
model, findings = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
ids, mask = torch.tensor(request["ids"]), torch.tensor(request["mask"])
answers = model.generate(ids, attention_mask=mask, max_new_tokens=8)
model.train()
output = model(ids, attention_mask=mask, labels=ids)
output.loss.backward()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
optimizer.step()
model.eval().save_pretrained(sys.argv[3])
again = AutoModelForCausalLM.from_pretrained(sys.argv[3], trust_remote_code=True)
with torch.no_grad():
    same = torch.equal(again(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)
print(json.dumps({
    "findings": {kind: sorted(keys) for kind, keys in findings.items()},
    "answers": answers.tolist(),
    "routing": output.routing.tolist(),
    "round_trip": same,
    "text": tokenizer.decode(tokenizer("12+3=")["input_ids"]),
}))
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, built: MixtureFolders) -> dict[str, object]:
    root = tmp_path_factory.mktemp("bare")
    ids, mask = _batch()
    request = json.dumps({"ids": ids.tolist(), "mask": mask.tolist()})
    # -P and a folder elsewhere: nothing of ours is found by the current directory.
    command = [sys.executable, "-P", "-c", SCRIPT, str(built.folder), request, str(root / "saved")]
    environment = {"HOME": str(root), "HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    return padded([prompts(1, length, seed=length)[0] for length in (9, 4, 7, 12, 5, 8)], "left")


def test_nothing_is_missing_or_unexpected(bare: dict[str, object]) -> None:
    assert set(map(tuple, bare["findings"].values())) == {()}  # type: ignore[attr-defined]


def test_it_generates_the_same(bare: dict[str, object], model: PreTrainedModel) -> None:
    ids, mask = _batch()
    assert bare["answers"] == model.generate(ids, attention_mask=mask, max_new_tokens=8).tolist()


def test_it_routes_the_same(bare: dict[str, object], model: PreTrainedModel) -> None:
    ids, mask = _batch()
    assert bare["routing"] == model.route(ids, mask).tolist()


def test_it_trains_saves_and_loads_again(bare: dict[str, object]) -> None:
    assert bare["round_trip"] is True


def test_the_tokenizer_came_along(bare: dict[str, object]) -> None:
    assert bare["text"] == "12+3="
