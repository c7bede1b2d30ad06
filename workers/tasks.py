"""The wake-up task, and the executor's life inside a Celery worker. Imported by workers, never by the API."""

import logging
import os
from threading import Thread
from time import sleep
from typing import Any

from celery import bootsteps
from celery.signals import worker_shutting_down

from glue.specs.plan import WorkerClass
from workers.app import WORK, app
from workers.executor import Executor
from workers.settings import Settings

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.1
_FAREWELL_SECONDS = 5.0
# Two lines for every wake-up would hide what happens to units.
for _chatty in ("celery.worker.strategy", "celery.app.trace"):
    logging.getLogger(_chatty).setLevel(logging.WARNING)

# One worker process is one slot.
_slot: list[Executor] = []


@app.task(name=WORK)  # type: ignore[untyped-decorator]
def work(worker_class: str) -> None:
    """There is work of this class. Holds its place until the slot is idle, so that a busy slot takes no messages."""
    for executor in _slot:
        executor.wake()


class Slot(bootsteps.StartStopStep):  # type: ignore[misc]
    """Starts the executor before the broker is looked for, and ends it before the pool is joined."""

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:
        """Serve the classes whose queues this worker consumes."""
        classes = [WorkerClass(name) for name in parent.app.amqp.queues.consume_from]
        executor = Executor(Settings.model_validate({}), classes)
        executor.start()
        _slot.append(executor)
        Thread(target=_leave_after, args=(executor,), name="farewell", daemon=True).start()

    def stop(self, parent: Any) -> None:
        """Drain, and wait for the end."""
        for executor in _slot:
            executor.drain()
            executor.join()

    terminate = stop

    def register_with_event_loop(self, parent: Any, hub: Any) -> None:
        """Have Celery look for messages ten times a second.

        The end of a task in a thread does not wake its event loop, which would otherwise sleep up to a second more.
        """
        hub.call_repeatedly(_TICK_SECONDS, lambda: None)


def _leave_after(executor: Executor) -> None:
    """End the process some seconds after its work has ended, though Celery may still wait for a broker that hangs."""
    executor.join()
    sleep(_FAREWELL_SECONDS)
    logger.warning("the broker does not answer the farewell: leaving without it")
    os._exit(0)


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def drain(**_: Any) -> None:
    """Begin to drain in the signal handler, long before Celery gets to stopping its parts."""
    for executor in _slot:
        executor.drain()


app.steps["worker"].add(Slot)
