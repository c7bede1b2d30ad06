"""Builds the small zoo into a folder: data, tasks, models, the two files of a job. What is there already stays."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
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
# What decides the bytes of a zoo besides its recipe.
DECIDING = ("data.py", "tokenizer.py", "training.py", "zoo.yml", "job.yml")
DECIDING_LIBRARIES = ("torch", "transformers", "tokenizers")


class OccupiedFolderError(Exception):
    """The folder holds something that is no small zoo."""


def build_zoo(folder: Path, recipe: Recipe = FULL, console: Console | None = None) -> Path:
    """The zoo in `folder`, built if it is not there yet, with a progress bar for each model; `folder` itself.

    Models are trained one after the other in two processes and put in place whole, so a build that was
    interrupted goes on with the model that it was at. What another recipe left is removed.

    Raises:
        OccupiedFolderError: the folder holds something else.
        TrainingError: a training process died; a second call goes on from there.
    """
    key = _key(recipe)
    if _says(folder / FINISHED, key):
        return folder
    if not _says(folder / STARTED, key):
        _clear(folder)
        (folder / STARTED).write_text(key)
    write_tasks(folder / "tasks")
    for name in ("zoo.yml", "job.yml"):
        shutil.copy(SOURCE / name, folder / name)
    (folder / "models").mkdir(exist_ok=True)
    with _bars(recipe, folder, console or Console()) as told:
        train_models(recipe, folder / "models", told)
    (folder / FINISHED).write_text(key)
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


def _key(recipe: Recipe) -> str:
    """Names all that decides what comes out: the recipe, our files, the libraries that compute."""
    ours = {name: (SOURCE / name).read_text(encoding="utf-8") for name in DECIDING}
    tasks = {path.name: path.read_text(encoding="utf-8") for path in (SOURCE / "tasks").iterdir()}
    return digest_of([recipe.digest, ours, tasks, {name: version(name) for name in DECIDING_LIBRARIES}])


def _clear(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / STARTED).is_file():
        raise OccupiedFolderError(f"{folder} holds something else; name an empty folder for the zoo")
    shutil.rmtree(folder)
    folder.mkdir()


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
