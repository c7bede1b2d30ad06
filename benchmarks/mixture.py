"""Mixtures against their expert alone: tokens a second, and memory. Run: python -m benchmarks.mixture [--levels].

Without more the model level at several lengths of the prompt; with `--levels` every level, with two and with four
experts, at one length. Both are asked in turn on one thread, in seconds of processor time, so that what else the
machine does counts little; the ratio is the median over turns.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from glue.mixture.block import build_block_mixture
from glue.mixture.ffn import build_ffn_mixture
from glue.mixture.ffn_own import build_own_ffn_mixture
from glue.mixture.gates import random_gates
from glue.mixture.load import load_model
from glue.mixture.router import RouterWeights
from glue.mixture.sources import ExpertSource
from tests.support.mixtures import mix, prompts, random_router, silent
from tests.support.models import tiny_llama

PROMPT_LENGTHS = (32, 128, 512, 1024)
NEW_TOKENS = 32
TURNS = 9
LEVEL_LENGTH = 128


def main() -> None:
    """Print a line for each prompt length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--levels", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as root:
        folders = _experts(Path(root), options.width, options.layers)
        if options.levels:
            _levels(Path(root), folders, options.width, options.layers)
            return
        mixture = load_model(mix(Path(root) / "mixture", folders[:2], _router(options.width)), torch.float32, "cpu")
        experts = [load_model(folder, torch.float32, "cpu") for folder in folders[:2]]
        for length in PROMPT_LENGTHS:
            print(_line(mixture, experts, length))


def _levels(root: Path, folders: list[Path], width: int, layers: int) -> None:
    expert = load_model(folders[0], torch.float32, "cpu")
    ids = prompts(1, LEVEL_LENGTH)
    print("level                             experts  asked  memory/expert  tokens/s  of the expert's")
    for count in (2, 4):
        for name, asked, build in _builders(folders[:count], width, layers):
            folder = root / f"{name}-{count}-{asked}"
            build(folder)
            model = load_model(folder, torch.float32, "cpu")
            alone, together = _turns(expert, model, ids)
            ratio = statistics.median(a / b for a, b in zip(alone, together, strict=True))
            memory, speed = _bytes(model) / _bytes(expert), NEW_TOKENS / statistics.median(together)
            print(f"{name:32} {count:8} {asked:6} {memory:14.2f} {speed:9.1f} {ratio:16.3f}")


def _builders(folders: list[Path], width: int, layers: int) -> list[tuple[str, int, Callable[[Path], object]]]:
    experts, count = [ExpertSource(folder.name, folder) for folder in folders], len(folders)
    gates = random_gates(layers, count, width, seed=0)
    router = RouterWeights(gates, torch.zeros(layers, width))
    base = experts[0]
    how: dict[str, Any] = {"dtype": "float32", "shard_bytes": 10**10, "token": 1, "progress": silent}

    def ffn(asked: int) -> Callable[[Path], object]:
        return lambda out: build_ffn_mixture(out, experts, gates, base, base.folder, top_k=asked, **how)

    def own(asked: int, samples: bool) -> Callable[[Path], object]:
        return lambda out: build_own_ffn_mixture(
            out, experts, router, base, base.folder, routes_samples=samples, top_k=asked, **how
        )

    def block(out: Path) -> None:
        build_block_mixture(out, experts, router, base, base.folder, top_k=1, **how)

    return [
        ("model", 1, lambda out: mix(out, folders, random_router(count, width=width))),
        ("block", 1, block),
        ("ffn, tokens, stock (Mixtral)", 1, ffn(1)),
        ("ffn, tokens, stock (Mixtral)", 2, ffn(2)),
        ("ffn, tokens, our file", 2, own(2, samples=False)),
        ("ffn, samples, our file", 1, own(1, samples=True)),
    ]


def _bytes(model: Any) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.nbytes for tensor in tensors)


def _experts(root: Path, width: int, layers: int) -> list[Path]:
    shape = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
    }
    return [tiny_llama(root / name, seed=seed, **shape) for seed, name in enumerate("abcd")]


def _router(width: int) -> Any:
    return random_router(2, width=width)


def _line(mixture: Any, experts: list[Any], length: int) -> str:
    ids = prompts(1, length)
    expert = experts[int(mixture.route(ids).argmax())]
    alone, together = _turns(expert, mixture, ids)
    ratios = [a / b for a, b in zip(alone, together, strict=True)]
    speeds = [NEW_TOKENS / statistics.median(seconds) for seconds in (alone, together)]
    ratio = statistics.median(ratios)
    return f"prompt {length:5}: expert {speeds[0]:6.1f} tokens/s, mixture {speeds[1]:6.1f} tokens/s, ratio {ratio:.3f}"


def _turns(expert: Any, mixture: Any, ids: torch.Tensor) -> tuple[list[float], list[float]]:
    """Seconds of each, asked in turn."""
    pairs = [(_seconds(expert, ids), _seconds(mixture, ids)) for _ in range(TURNS)]
    return [alone for alone, _ in pairs], [together for _, together in pairs]


def _seconds(model: Any, ids: torch.Tensor) -> float:
    begin = time.process_time()
    model.generate(ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
