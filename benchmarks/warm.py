"""One merge file run several times in one process, ours or mergekit's; tells the seconds of the fastest run.

Usage: python -m benchmarks.warm ours|mergekit FILE.yml OUT RUNS. The first run pays for imports and is not counted.
"""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path


def main(which: str, file: Path, out: Path, runs: int) -> None:
    """Run the file and print the seconds of the fastest run but the first."""
    merge = {"ours": _ours, "mergekit": _theirs}[which](file, out)
    seconds = []
    for _ in range(runs + 1):
        shutil.rmtree(out, ignore_errors=True)
        began = time.monotonic()
        merge()
        seconds.append(time.monotonic() - began)
    sys.stdout.write(f"{min(seconds[1:])}\n")


def _ours(file: Path, out: Path) -> Callable[[], object]:
    from glue.merging.run import merge_file

    return lambda: merge_file(file, out, shard_bytes=4_000_000_000, seed=None, progress=lambda fraction, message: None)


def _theirs(file: Path, out: Path) -> Callable[[], object]:
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(yaml.safe_load(file.read_text()))
    return lambda: run_merge(config, str(out), MergeOptions(quiet=True))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
