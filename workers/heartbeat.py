"""The heartbeat: renews the running unit's lease, brings cancel and drain back, keeps the worker's row alive.

It runs in a thread and on a database connection of its own, and never touches the engine: it only says what it
learned, and whoever runs the unit acts on it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread
from time import monotonic
from typing import Any

from sqlalchemy.exc import DBAPIError

from glue.records import leases, workers
from glue.records.database import Database
from glue.records.leases import Claim, WorkerIdentity
from glue.telemetry.metrics import HEARTBEATS
from glue.telemetry.pulse import beat
from workers.engine.process import Interruption
from workers.logs import brief

logger = logging.getLogger(__name__)

_BEATS_PER_LEASE = 4
_RETRIES_PER_LEASE = 20


class Lease:
    """What this process knows of one lease. `valid_until` is on the monotonic clock, and errs on the early side."""

    def __init__(self, unit_id: str, token: int, valid_until: float) -> None:
        self.unit_id = unit_id
        self.token = token
        self.valid_until = valid_until
        self.progress: dict[str, Any] | None = None
        self._ended: Interruption | None = None

    def report(self, progress: dict[str, Any]) -> None:
        """Keep the latest progress for the next beat."""
        self.progress = progress

    def end(self, reason: Interruption) -> None:
        """Have the unit stopped."""
        self._ended = reason

    def interruption(self) -> Interruption | None:
        """Why the unit must stop. Without an answer from the database the lease ends by this process's own clock."""
        if self._ended is None and monotonic() > self.valid_until:
            return Interruption.LOST
        return self._ended


class Heartbeat:
    """The heartbeat of one slot, from `start` to `stop`."""

    def __init__(self, database: Database, identity: WorkerIdentity, lease: timedelta) -> None:
        self.draining_since: float | None = None
        self._database = database
        self._identity = identity
        self._duration = lease
        self._held: Lease | None = None
        self._stopped = Event()
        self._registered = False
        self._thread = Thread(target=self._beat_until_stopped, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Register the worker and begin to beat."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Stop beating and forget the worker; at most so long."""
        self._stopped.set()
        self._thread.join(seconds)

    @contextmanager
    def hold(self, claim: Claim, valid_until: float) -> Iterator[Lease]:
        """Renew this claim's lease while the block runs."""
        self._held = Lease(claim.unit.unit_id, claim.token, valid_until)
        try:
            yield self._held
        finally:
            self._held = None

    def _beat_until_stopped(self) -> None:
        wait = 0.0
        while not self._stopped.wait(wait):
            taken = self._try_to_beat()
            # Whether the database took it or not: this thread lives.
            beat("heartbeat")
            HEARTBEATS.labels("taken" if taken else "missed").inc()
            wait = self._duration.total_seconds() / (_BEATS_PER_LEASE if taken else _RETRIES_PER_LEASE)
        self._forget()

    def _try_to_beat(self) -> bool:
        try:
            self._renew_lease()
            self._renew_worker()
        except DBAPIError as error:
            logger.warning("worker %s: no heartbeat: %s", self._identity.id, brief(error))
            return False
        except Exception:
            # A thread that dies in silence would cost every later unit; one that goes on costs a lease at worst.
            logger.exception("worker %s: the heartbeat failed", self._identity.id)
            return False
        return True

    def _renew_worker(self) -> None:
        with self._database.transaction() as session:
            if not self._registered:
                workers.register_worker(session, self._identity)
            # Forgotten (by a database that was away for a day) means registered anew at the next beat.
            self._registered = False
            draining = workers.beat_worker(session, self._identity.id)
        self._registered = True
        self._note_draining(draining)

    def _renew_lease(self) -> None:
        lease = self._held
        if lease is None:
            return
        asked = monotonic()
        with self._database.transaction() as session:
            beat = leases.heartbeat(
                session, self._identity.id, lease.unit_id, lease.token, self._duration, lease.progress
            )
        if not beat.alive:
            lease.end(Interruption.LOST)
            return
        lease.valid_until = asked + self._duration.total_seconds()
        if beat.cancel:
            lease.end(Interruption.CANCELLED)

    def _note_draining(self, draining: bool) -> None:
        if not draining:
            self.draining_since = None
        elif self.draining_since is None:
            self.draining_since = monotonic()

    def _forget(self) -> None:
        try:
            with self._database.transaction() as session:
                workers.forget_worker(session, self._identity.id)
        except DBAPIError as error:
            logger.warning("worker %s: its row stays behind: %s", self._identity.id, brief(error))
