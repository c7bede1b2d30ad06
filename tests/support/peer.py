"""mergekit as a peer: installed under build/peer by `make peer`, always run as a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PEER = ROOT / "build" / "peer"


def is_installed() -> bool:
    """Whether `make peer` has run."""
    return (PEER / "mergekit").is_dir()


def run_peer(pairs: Sequence[tuple[Path, Path]], work: Path, script: str = "run_peer.py") -> dict[str, str | None]:
    """Run (configuration file, output folder) pairs; output folder to None, or to the error."""
    listed = work / "peer.json"
    listed.write_text(json.dumps([[str(file), str(out)] for file, out in pairs]))
    environment = os.environ | {"PYTHONPATH": str(PEER), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    path = ROOT / "tests" / "parity" / script
    done = subprocess.run(
        [sys.executable, str(path), str(listed)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"the peer could not run: {done.stderr[-3000:]}")
    errors: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return errors
