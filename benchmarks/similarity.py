"""The similarity matrix of twelve models of 1.1 billion parameters, against the paper's way of computing it.

    .venv/bin/python -m benchmarks.similarity FOLDER

The paper compares one pair after the other and loads both models anew for each (Model-GLUE, arXiv 2410.05357, appendix
A.5); one pair is timed and multiplied by the 66 pairs of twelve models. Needs 27 GB below FOLDER; skipped with less
than 40 GB of free disk, models that are there already counted as free.
"""

import json
import shutil
import sys
from pathlib import Path

from benchmarks.commands import into_page_cache, run
from benchmarks.models import make_models

COUNT = 12
FREE_BYTES = 40 * 10**9
PAIRS = COUNT * (COUNT - 1) // 2
THRESHOLD = "0.95"
# The formula of the paper's code: transformers loads both models; the mean over columns, then over matrices.
ONE_PAIR = """
import sys, torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM
left, right = (AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).state_dict() for name in sys.argv[1:])
names = [name for name, value in left.items() if ("self_attn" in name or "mlp" in name) and value.dim() == 2]
print(sum(float(cosine_similarity(left[name], right[name], dim=0).mean()) for name in names) / len(names))
"""


def main(work: Path) -> None:
    """Compare and print both."""
    there = sum(path.stat().st_size for path in work.glob("*/model.safetensors")) if work.is_dir() else 0
    free = shutil.disk_usage(work if work.is_dir() else work.parent).free
    if free + there < FREE_BYTES:
        sys.stdout.write(f"skipped: {free / 1e9:.0f} GB of free disk, twelve models need {FREE_BYTES / 1e9:.0f}\n")
        return
    make_models(work, COUNT)
    names = [f"model{number}" for number in range(1, COUNT + 1)]
    into_page_cache([work / name / "model.safetensors" for name in names])
    glue = str(Path(sys.executable).with_name("glue"))
    ours = run([glue, "cluster", *names, "--threshold", THRESHOLD, "--json"], work)
    into_page_cache([work / name / "model.safetensors" for name in names[:2]])
    pair = run([sys.executable, "-c", ONE_PAIR, *names[:2]], work)
    sys.stdout.write(
        f"glue, {COUNT} models: {ours.seconds:.1f} s, {ours.anonymous_bytes / 1e6:.0f} MB\n"
        f"the paper's way, one pair: {pair.seconds:.1f} s, {pair.anonymous_bytes / 1e6:.0f} MB;"
        f" times {PAIRS}: {pair.seconds * PAIRS:.0f} s, {pair.seconds * PAIRS / ours.seconds:.0f} times as long\n"
        f"the first pair's similarity: {json.loads(ours.output)['similarity'][0][1]} and {float(pair.output):.6f}\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
