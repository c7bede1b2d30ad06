"""Trains models in two processes side by side, parents before their children. Knows nothing of what training is."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path

from examples.small_zoo.recipe import ModelRecipe, Recipe

Progress = Callable[[str, int], None]

PROCESSES = 2
REPORT_EVERY = 5
SAVED = "saved"


class TrainingError(Exception):
    """A training process ended before its model was saved."""


def train_models(recipe: Recipe, models: Path, progress: Progress) -> None:
    """Train what is not yet in `models`; `progress` hears a model's name and how many of its steps are done.

    Raises:
        TrainingError: a training process died.
    """
    waiting = [each for each in recipe.models if not (models / each.name).exists()]
    training: dict[Connection, ModelRecipe] = {}
    with _trainers(min(PROCESSES, len(waiting)), recipe.batch, models) as idle:
        while waiting or training:
            for startable in [each for each in waiting if _has_parent(each, models)][: len(idle)]:
                training[idle[-1]] = startable
                idle.pop().send(startable)
                waiting.remove(startable)
            for trainer in wait(list(training)):
                assert isinstance(trainer, Connection)
                news = _receive(trainer, training[trainer])
                if news == SAVED:
                    del training[trainer]
                    idle.append(trainer)
                else:
                    progress(training[trainer].name, int(news))


def _has_parent(recipe: ModelRecipe, models: Path) -> bool:
    return recipe.parent is None or (models / recipe.parent).exists()


def _receive(trainer: "Connection", recipe: ModelRecipe) -> int | str:
    try:
        news: int | str = trainer.recv()
    except (EOFError, ConnectionResetError):
        raise TrainingError(
            f"the process that trains {recipe.name} has ended; start again to go on from here"
        ) from None
    return news


@contextmanager
def _trainers(count: int, batch: int, models: Path) -> Iterator[list["Connection"]]:
    """Fresh processes that train one recipe after the other, by our ends of the pipes to them."""
    context = get_context("spawn")
    connections, processes = [], []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, batch, models), daemon=True)
            process.start()
            # Only the trainer holds its end, so that the death of either side closes the pipe.
            theirs.close()
            connections.append(ours)
            processes.append(process)
        yield list(connections)
    finally:
        for connection, process in zip(connections, processes, strict=True):
            connection.close()
            process.terminate()
            process.join()


def _serve(connection: "Connection", batch: int, models: Path) -> None:
    """Train what comes through the pipe until it closes."""
    # Ctrl-C reaches the starter too, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    # Only here, so that the starter of a zoo that is already built need not load torch.
    import torch
    from transformers.utils.logging import disable_progress_bar

    from examples.small_zoo.training import build_model

    # The starter shows the progress.
    disable_progress_bar()
    # One thread gives the same sums on every number of processors.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            recipe: ModelRecipe = connection.recv()
            build_model(recipe, batch, models, partial(_tell, connection, recipe.steps))
            connection.send(SAVED)


def _tell(connection: "Connection", steps: int, step: int) -> None:
    if step % REPORT_EVERY == 0 or step == steps:
        connection.send(step)
