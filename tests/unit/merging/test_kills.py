"""A sharded merge killed at random moments and started again ends with the bytes of an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.models import tiny_llama

ROOT = Path(__file__).parents[3]
MERGE = """
import json, sys
from pathlib import Path
from glue.merging.engine import merge_to_folder
from glue.specs.expression import parse_expression
folders = {name: Path(path) for name, path in json.loads(sys.argv[1]).items()}
inputs = [{"model": {"name": name}, "parameters": {"weight": 0.4, "density": 0.5}} for name in ("a", "b")]
for part in inputs:
    part["model"]["node"] = "member"
tree = {"node": "merge", "method": "dare_ties", "inputs": inputs, "base": {"node": "member", "name": "base"}}
print("ready", flush=True)
merge_to_folder(parse_expression(tree), folders, Path(sys.argv[2]), dtype="bfloat16", shard_bytes=400_000,
    token=int(sys.argv[3]), progress=lambda fraction, message: None)
"""


def start(zoo: dict[str, Path], out: Path, token: int) -> subprocess.Popen[str]:
    folders = json.dumps({name: str(path) for name, path in zoo.items()})
    command = [sys.executable, "-c", MERGE, folders, str(out), str(token)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 12}
    zoo = {name: tiny_llama(tmp_path / name, seed=seed, **shape) for seed, name in enumerate(("base", "a", "b"))}
    whole = start(zoo, tmp_path / "whole", 1)
    assert whole.stdout is not None
    whole.stdout.readline()
    began = time.monotonic()
    assert whole.wait() == 0
    length = time.monotonic() - began
    expected = bytes_of(tmp_path / "whole")
    assert len(expected) > 20
    chance = random.Random(5)
    cut_short = 0
    for number in range(20):
        out = tmp_path / f"out{number}"
        victim = start(zoo, out, 2)
        assert victim.stdout is not None
        victim.stdout.readline()
        time.sleep(chance.uniform(0, length))
        os.kill(victim.pid, signal.SIGKILL)
        cut_short += victim.wait() == -signal.SIGKILL and not (out / "manifest.json").exists()
        assert start(zoo, out, 3).wait() == 0
        assert bytes_of(out) == expected
    assert cut_short > 5
