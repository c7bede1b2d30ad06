"""A model-level mixture against its expert alone: tokens a second. Run: python -m benchmarks.mixture [--width N].

Both are asked in turn on one thread, in seconds of processor time, so that what else the machine does counts little;
the ratio is the median over turns.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from glue.mixture.load import load_model
from tests.support.mixtures import mix, prompts, random_router
from tests.support.models import tiny_llama

PROMPT_LENGTHS = (32, 128, 512, 1024)
NEW_TOKENS = 32
TURNS = 9


def main() -> None:
    """Print a line for each prompt length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as root:
        folders = _experts(Path(root), options.width, options.layers)
        mixture = load_model(mix(Path(root) / "mixture", folders, _router(options.width)), torch.float32, "cpu")
        experts = [load_model(folder, torch.float32, "cpu") for folder in folders]
        for length in PROMPT_LENGTHS:
            print(_line(mixture, experts, length))


def _experts(root: Path, width: int, layers: int) -> list[Path]:
    shape = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
    }
    return [tiny_llama(root / name, seed=seed, **shape) for seed, name in enumerate("ab")]


def _router(width: int) -> Any:
    return random_router(2, width=width)


def _line(mixture: Any, experts: list[Any], length: int) -> str:
    ids = prompts(1, length)
    expert = experts[int(mixture.route(ids).argmax())]
    alone, together, ratios = [], [], []
    for _ in range(TURNS):
        alone.append(_seconds(expert, ids))
        together.append(_seconds(mixture, ids))
        ratios.append(alone[-1] / together[-1])
    speeds = [NEW_TOKENS / statistics.median(seconds) for seconds in (alone, together)]
    ratio = statistics.median(ratios)
    return f"prompt {length:5}: expert {speeds[0]:6.1f} tokens/s, mixture {speeds[1]:6.1f} tokens/s, ratio {ratio:.3f}"


def _seconds(model: Any, ids: torch.Tensor) -> float:
    begin = time.process_time()
    model.generate(ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
