"""Runs mixture files through mergekit-moe, in a process of its own.

Usage: python run_moe_peer.py LIST.json, where the list holds [mixture file, output folder] pairs. Ends with one
line of JSON: for every output folder, null or the error.
"""

import json
import logging
import sys
from pathlib import Path

import torch
import yaml
from mergekit.moe.config import MoEMergeConfig
from mergekit.options import MergeOptions
from mergekit.scripts.moe import build

SEED = 7


def run(file: str, out: str) -> str | None:
    """Run one mixture; the error's text where it fails."""
    try:
        config = MoEMergeConfig.model_validate(yaml.safe_load(Path(file).read_text()))
        torch.manual_seed(SEED)
        build(config, out, MergeOptions(quiet=True, write_model_card=False), device="cpu")
    except (Exception, SystemExit) as error:  # mergekit raises whatever it likes; the test shows it
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    pairs = json.loads(Path(sys.argv[1]).read_text())
    sys.stdout.write(json.dumps({out: run(file, out) for file, out in pairs}) + "\n")
