"""`python -m examples.small_zoo [FOLDER]`: build the small zoo and say where it lies."""

from argparse import ArgumentParser
from pathlib import Path

from rich.console import Console

from examples.small_zoo.build import build_zoo, zoo_digest
from examples.small_zoo.recipe import FULL, QUICK


def main() -> None:
    """Build, or find, the zoo in the folder that the command line names."""
    parser = ArgumentParser("python -m examples.small_zoo", description="Train the small zoo from scratch.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/small_zoo"))
    parser.add_argument("--quick", action="store_true", help="a few steps only: models that have learnt little")
    arguments = parser.parse_args()
    console = Console()
    folder = build_zoo(arguments.folder, QUICK if arguments.quick else FULL, console)
    console.print(f"{folder}: sha256 {zoo_digest(folder)}", highlight=False, soft_wrap=True)


# Training processes import this module anew.
if __name__ == "__main__":
    main()
