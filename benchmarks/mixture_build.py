"""glue mix against mergekit-moe on the same file: two experts of 1.1 billion parameters become a Mixtral of 1.9.

Run after `make install peer`:  .venv/bin/python -m benchmarks.mixture_build FOLDER [GATE_MODE ...]
Needs 15 GB below FOLDER. Both programs run as whole commands, in turn, with inputs in the page cache; the last column
is how many times less memory ours takes. Mode `random` is the writing alone; `hidden` also runs the base on prompts.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.commands import into_page_cache, run
from benchmarks.models import make_models
from tests.support.peer import PEER

MODES = ("random", "hidden")
PROMPTS = (["12+3=", "9*9="], ["def f(x):", "return x"])
PEER_COMMAND = "from mergekit.scripts.moe import main; main()"


def main(work: Path, modes: list[str]) -> None:
    """Build with both programs in each mode and print a row."""
    make_models(work, len(PROMPTS))
    sys.stdout.write("gate_mode   glue s  mergekit-moe s  ratio   glue MB  mergekit-moe MB  ratio\n")
    for mode in modes:
        file = work / f"moe-{mode}.yml"
        file.write_text(yaml.safe_dump(_config(mode)))
        glue = [str(Path(sys.executable).with_name("glue")), "mix", str(file), "moe-ours"]
        peer = [sys.executable, "-c", PEER_COMMAND, str(file), "moe-theirs", "--quiet"]
        done = []
        for command, path in ((glue, ""), (peer, str(PEER))):
            for name in ("moe-ours", "moe-theirs"):
                shutil.rmtree(work / name, ignore_errors=True)
            into_page_cache(list(work.glob("*/model.safetensors")))
            done.append(run(command, work, PYTHONPATH=path))
        ours, theirs = done
        sys.stdout.write(
            f"{mode:10} {ours.seconds:7.1f} {theirs.seconds:15.1f} {theirs.seconds / ours.seconds:6.1f}"
            f" {ours.anonymous_bytes / 1e6:9.0f} {theirs.anonymous_bytes / 1e6:16.0f}"
            f" {theirs.anonymous_bytes / ours.anonymous_bytes:6.1f}\n"
        )
        sys.stdout.flush()


def _config(mode: str) -> dict[str, Any]:
    experts = [
        {"source_model": f"./model{number}", "positive_prompts": texts} for number, texts in enumerate(PROMPTS, start=1)
    ]
    settings = {"gate_mode": mode, "dtype": "bfloat16", "experts_per_token": 2}
    return {"base_model": "./base", **settings, "experts": experts}


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:] or list(MODES))
