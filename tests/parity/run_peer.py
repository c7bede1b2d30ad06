"""Runs merge files through mergekit, in a process of its own; what differs between both programs shows in the tests.

Usage: python run_peer.py LIST.json, where the list holds [merge file, output folder] pairs. Ends with one line of
JSON: for every output folder, null or the error.
"""

import json
import logging
import sys
from pathlib import Path

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions


def run(file: str, out: str) -> str | None:
    """Run one merge; the error's text where it fails."""
    try:
        config = MergeConfiguration.model_validate(yaml.safe_load(Path(file).read_text()))
        options = MergeOptions(quiet=True, random_seed=7, write_model_card=False, lora_merge_cache=f"{out}.lora")
        run_merge(config, out, options)
    except Exception as error:  # mergekit raises whatever it likes; the test shows it
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    pairs = json.loads(Path(sys.argv[1]).read_text())
    sys.stdout.write(json.dumps({out: run(file, out) for file, out in pairs}) + "\n")
