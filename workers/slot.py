"""`python -m workers.slot`: one slot. With a broker it is a Celery worker, without one it listens and polls alone."""

import argparse
import logging
import signal
from collections.abc import Sequence
from threading import Thread

from celery.signals import setup_logging

from glue.specs.plan import WorkerClass
from glue.telemetry.devices import DeviceCollector
from glue.telemetry.logs import configure_logs
from glue.telemetry.metrics import serve_metrics
from glue.telemetry.traces import flush_traces
from workers.app import app
from workers.executor import Executor
from workers.listener import Listener
from workers.logs import masked
from workers.settings import Settings

logger = logging.getLogger(__name__)

_LISTEN_SECONDS = 30.0


@setup_logging.connect  # type: ignore[untyped-decorator]
def keep_our_logs(**_: object) -> None:
    """Celery sets up no logs of its own where somebody answers this signal: ours are set up already."""


def serve_with_celery(name: str, classes: Sequence[WorkerClass]) -> None:
    """Be the Celery worker `name@host` on the queues of these classes until SIGTERM."""
    options = ["--hostname", f"{name}@%h", "--queues", ",".join(classes), "--loglevel", "INFO"]
    app.worker_main(["worker", *options, "--without-gossip", "--without-mingle", "--without-heartbeat"])


def serve_alone(settings: Settings, classes: Sequence[WorkerClass]) -> None:
    """Run units until SIGTERM or Ctrl-C, woken by the database alone."""
    executor = Executor(settings, classes)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: executor.drain())
    executor.start()
    Thread(target=_pass_on_wake_ups, args=(settings, executor, classes), name="listener", daemon=True).start()
    executor.join()


def _pass_on_wake_ups(settings: Settings, executor: Executor, classes: Sequence[WorkerClass]) -> None:
    listener = Listener(settings.database_url)
    while True:
        if listener.wait(_LISTEN_SECONDS) & set(classes):
            executor.wake()


def main() -> None:
    """Serve as the environment says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="slot", help="the slot's name, for logs")
    parser.add_argument("--classes", help="worker classes, separated by commas; default: GLUE_WORKER_CLASSES")
    arguments = parser.parse_args()
    settings = Settings.model_validate({})
    classes = (
        [WorkerClass(name) for name in arguments.classes.split(",")] if arguments.classes else settings.worker_classes
    )
    configure_logs()
    serve_metrics(settings.metrics_port, [DeviceCollector()])
    logger.info("slot %s serves %s from %s", arguments.name, ",".join(classes), masked(settings.database_url))
    try:
        if settings.redis_url:
            serve_with_celery(arguments.name, classes)
        else:
            serve_alone(settings, classes)
    finally:
        flush_traces()


if __name__ == "__main__":
    main()
