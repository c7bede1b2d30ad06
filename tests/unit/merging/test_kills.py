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
merge_to_folder(parse_expression(tree), folders, Path(sys.argv[2]), dtype="bfloat16", shard_bytes=400_000,
    token=int(sys.argv[3]), progress=lambda fraction, message: print(fraction, flush=True))
"""


def start(zoo: dict[str, Path], out: Path, token: int) -> subprocess.Popen[str]:
    folders = json.dumps({name: str(path) for name, path in zoo.items()})
    command = [sys.executable, "-c", MERGE, folders, str(out), str(token)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def until(process: subprocess.Popen[str], fraction: float) -> None:
    """Wait until the merge tells that it is so far; one that is to finish must end well."""
    assert process.stdout is not None
    while (line := process.stdout.readline()) and (fraction == 1 or float(line) < fraction):
        pass
    if fraction == 1:
        assert process.wait() == 0


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 12}
    zoo = {name: tiny_llama(tmp_path / name, seed=seed, **shape) for seed, name in enumerate(("base", "a", "b"))}
    until(start(zoo, tmp_path / "whole", 1), 1)
    expected = bytes_of(tmp_path / "whole")
    assert len(expected) > 20
    chance = random.Random(5)
    cut_short = 0
    for number in range(20):
        out = tmp_path / f"out{number}"
        victim = start(zoo, out, 2)
        until(victim, chance.uniform(0, 0.95))
        time.sleep(chance.uniform(0, 0.01))
        os.kill(victim.pid, signal.SIGKILL)
        cut_short += victim.wait() == -signal.SIGKILL and not (out / "manifest.json").exists()
        until(start(zoo, out, 3), 1)
        assert bytes_of(out) == expected
    assert cut_short > 15
