"""`python -m examples.small_zoo [FOLDER]`: build the small zoo and say where it lies."""

import sys
from pathlib import Path

from rich.console import Console

from examples.small_zoo.build import build_zoo, zoo_digest


def main() -> None:
    """Build into FOLDER, `build/small_zoo` by default."""
    console = Console()
    folder = build_zoo(Path(sys.argv[1] if len(sys.argv) > 1 else "build/small_zoo"), console=console)
    console.print(f"{folder}: sha256 {zoo_digest(folder)}", highlight=False, soft_wrap=True)


# Training processes import this module anew.
if __name__ == "__main__":
    main()
