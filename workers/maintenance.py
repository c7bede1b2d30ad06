"""`python -m workers.maintenance`: the dispatcher publishes wake-ups, the reaper takes expired leases back.

Any number of these processes may run; they share their work through the database. Neither knows what a unit is.
"""

import logging
import signal
from collections.abc import Callable
from datetime import timedelta
from threading import Event, Thread
from time import monotonic, sleep

from glue.records.database import Database
from glue.records.leases import Backoff, reap
from glue.records.outbox import mark_sent, take_unsent, waiting_classes
from glue.telemetry.logs import configure_logs
from glue.telemetry.metrics import REAPED, WAKE_UPS, serve_metrics
from glue.telemetry.pulse import beat
from workers.broker import Announcements, Broker, Carrier
from workers.listener import Listener
from workers.logs import brief, masked
from workers.queue_metrics import QueueCollector
from workers.settings import Settings

logger = logging.getLogger(__name__)

# A stop is heard this soon, and a wake-up that becomes due is sent this soon after.
_TICK_SECONDS = 0.5
_FIRST_RETRY_SECONDS = 0.25
_LAST_RETRY_SECONDS = 2.0
_STOP_SECONDS = 0.6
_SIGNAL_SECONDS = 0.1
_BATCH = 100
_CHECKS_PER_REPUBLISH = 4


class Dispatcher:
    """Publishes what the outbox holds, and again for work that has waited for long: messages get lost."""

    def __init__(self, database: Database, listener: Listener, carrier: Carrier, republish: timedelta) -> None:
        self._database = database
        self._listener = listener
        self._carrier = carrier
        self._republish = republish
        self._checked_at = monotonic()

    def step(self) -> None:
        """Wait a moment for an announcement, then publish what is due."""
        self._listener.wait(_TICK_SECONDS)
        while self._dispatch() == _BATCH:
            pass
        if monotonic() - self._checked_at > self._republish.total_seconds() / _CHECKS_PER_REPUBLISH:
            self._remind()
            self._checked_at = monotonic()

    def _dispatch(self) -> int:
        with self._database.transaction() as session:
            due = [(row.id, row.worker_class) for row in take_unsent(session, _BATCH)]
        sent: list[int] = []
        try:
            for row_id, worker_class in due:
                self._publish(worker_class)
                sent.append(row_id)
        finally:
            if sent:
                with self._database.transaction() as session:
                    mark_sent(session, sent)
        return len(sent)

    def _remind(self) -> None:
        with self._database.transaction() as session:
            classes = waiting_classes(session, self._republish)
        for worker_class in classes:
            # A message that still waits says the same; without this they would pile up while all slots are busy.
            if not self._carrier.holds(worker_class):
                self._publish(worker_class)

    def _publish(self, worker_class: str) -> None:
        self._carrier.publish(worker_class)
        WAKE_UPS.labels(worker_class).inc()


class Reaper:
    """Takes the leases of the dead back."""

    def __init__(self, database: Database, every: float, backoff: Backoff, stop: Event) -> None:
        self._database = database
        self._every = every
        self._backoff = backoff
        self._stop = stop

    def step(self) -> None:
        """Wait for the next round, then take back whatever has expired."""
        self._stop.wait(self._every)
        while self._reap() == _BATCH:
            pass

    def _reap(self) -> int:
        with self._database.transaction() as session:
            lost = reap(session, _BATCH, self._backoff)
        if lost:
            logger.warning("%d expired leases were taken back", lost)
            REAPED.inc(lost)
        return lost


def repeat(step: Callable[[], None], name: str, stop: Event) -> None:
    """Take the step for ever; a failure (a server restarts) costs a pause that doubles up to two seconds."""
    pause = _FIRST_RETRY_SECONDS
    while not stop.is_set():
        beat(name)
        try:
            step()
            pause = _FIRST_RETRY_SECONDS
        except Exception as error:
            logger.warning("%s: %s; again in %.2f s", name, brief(error), pause)
            stop.wait(pause)
            pause = min(2 * pause, _LAST_RETRY_SECONDS)


def serve(settings: Settings, stop: Event) -> None:
    """Run both until `stop`, and return within a second of it whatever a server that hangs makes of it."""
    database = Database(settings.database_url, pool_size=2)
    serve_metrics(settings.metrics_port, [QueueCollector(database)])
    republish = timedelta(seconds=settings.republish)
    carrier = Broker(settings.redis_url) if settings.redis_url else Announcements(database)
    dispatcher = Dispatcher(database, Listener(settings.database_url), carrier, republish)
    reaper = Reaper(database, settings.reap, Backoff(lost=timedelta(seconds=settings.retry / 2)), stop)
    parts = {"dispatcher": dispatcher.step, "reaper": reaper.step}
    threads = [Thread(target=repeat, args=(step, name, stop), name=name, daemon=True) for name, step in parts.items()]
    for thread in threads:
        thread.start()
    while not stop.is_set():
        # Not `stop.wait`: the signal handler that sets it runs in this thread, and would wait for itself.
        sleep(_SIGNAL_SECONDS)
    deadline = monotonic() + _STOP_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    configure_logs()
    settings, stop = Settings.model_validate({}), Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    broker = masked(settings.redis_url) or "no broker"
    logger.info("maintenance of %s, wake-ups through %s", masked(settings.database_url), broker)
    serve(settings, stop)


if __name__ == "__main__":
    main()
