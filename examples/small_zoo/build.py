"""Builds the small zoo into a folder: data, tasks, models, the two files of a job. What is there already stays."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from examples.small_zoo.data import DOMAINS, Item
from examples.small_zoo.recipe import FULL, Recipe
from examples.small_zoo.trainers import Progress as Told
from examples.small_zoo.trainers import train_models
from glue.specs.digests import digest_of

SOURCE = Path(__file__).parent
FINISHED, STARTED = "finished.txt", "started.txt"


def build_zoo(folder: Path, recipe: Recipe = FULL, console: Console | None = None) -> Path:
    """The zoo in `folder`, built if it is not there yet, with a progress bar for each model; `folder` itself.

    Models are trained one after the other in two processes and put in place whole, so a build that was
    interrupted goes on with the model that it was at. What another recipe left is removed.

    Raises:
        TrainingError: a training process died.
    """
    if _says(folder / FINISHED, recipe.digest):
        return folder
    if not _says(folder / STARTED, recipe.digest):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / STARTED).write_text(recipe.digest)
    write_tasks(folder / "tasks")
    for name in ("zoo.yml", "job.yml"):
        shutil.copy(SOURCE / name, folder / name)
    (folder / "models").mkdir(exist_ok=True)
    with _bars(recipe, folder, console or Console()) as told:
        train_models(recipe, folder / "models", told)
    (folder / FINISHED).write_text(recipe.digest)
    return folder


def write_tasks(folder: Path) -> None:
    """Copy the tasks' YAML files and write the items that they ask for beside them."""
    shutil.copytree(SOURCE / "tasks", folder, dirs_exist_ok=True)
    for name, domain in DOMAINS.items():
        items = domain()
        _write_items(folder / f"small_{name}.jsonl", items.proxy)
        _write_items(folder / f"small_{name}_report.jsonl", items.report)


def zoo_digest(folder: Path) -> str:
    """sha256 over the content of every model and every task file: the same on every machine of one kind."""
    from glue.checkpoints.content import content_digest
    from glue.checkpoints.manifest import build_manifest

    models = {model.name: content_digest(model) for model in sorted((folder / "models").iterdir())}
    return digest_of({"models": models, "tasks": build_manifest(folder / "tasks").as_json()})


def _says(path: Path, digest: str) -> bool:
    return path.is_file() and path.read_text() == digest


def _write_items(path: Path, items: tuple[Item, ...]) -> None:
    path.write_text("".join(json.dumps(_document(item)) + "\n" for item in items), encoding="utf-8")


def _document(item: Item) -> dict[str, object]:
    # Sorted, so that the place of the right answer tells nothing.
    choices = sorted((item.target, *item.others))
    return {"context": item.context, "target": item.target, "choices": choices, "answer": choices.index(item.target)}


@contextmanager
def _bars(recipe: Recipe, folder: Path, console: Console) -> Iterator[Told]:
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks = {}
        for model in recipe.models:
            done = model.steps if (folder / "models" / model.name).exists() else 0
            tasks[model.name] = bars.add_task(model.name, total=model.steps, completed=done, start=False)

        def told(name: str, step: int) -> None:
            bars.start_task(tasks[name])
            bars.update(tasks[name], completed=step)

        yield told
