"""The claim loop of one slot: claim the best unit, have it run, again; rest when there is none.

Nothing here knows Celery: a wake-up is a call, and without any the loop still asks the database now and then.
"""

import logging
from collections.abc import Sequence
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Event, Thread
from time import monotonic

from sqlalchemy.exc import DBAPIError

from glue.records import leases
from glue.records.database import Database
from glue.records.ids import new_id
from glue.records.leases import WorkerIdentity
from glue.specs.plan import WorkerClass
from workers.engine.process import Interruption, WarmEngine
from workers.heartbeat import Heartbeat, Lease
from workers.logs import brief
from workers.observe import observed, watch
from workers.settings import Settings
from workers.unit_runner import UnitRunner, described
from workers.work_folders import sweep, sweep_copies

logger = logging.getLogger(__name__)

_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 2.0
_IDLE_ENGINE_SECONDS = 60.0
_FAREWELL_SECONDS = 2.0
_JOIN_SECONDS = 0.5


class Executor:
    """One slot: one unit at a time, in one thread that lives until `drain`.

    The engine is started from that thread, because the kernel kills it when the thread ends.
    """

    def __init__(self, settings: Settings, classes: Sequence[WorkerClass]) -> None:
        self._settings = settings
        self._lease = timedelta(seconds=settings.lease)
        self._database = Database(settings.database_url, pool_size=1)
        self._heart_database = Database(settings.database_url, pool_size=1)
        served = tuple(each.value for each in classes)
        self._identity = WorkerIdentity(new_id("wrk"), served, settings.unit_memory)
        self._heartbeat = Heartbeat(self._heart_database, self._identity, self._lease)
        self._engine = WarmEngine(settings)
        self._runner = UnitRunner(settings, self._database, self._engine)
        # A SimpleQueue, because `drain` is called from signal handlers.
        self._bell: SimpleQueue[Event | None] = SimpleQueue()
        self._unanswered: list[Event] = []
        self._draining_since: float | None = None
        self._busy_at = monotonic()
        self._sweep_at = 0.0
        watch(settings.home, lambda: self.engine_pid)
        self._thread = Thread(target=self._live, name="executor", daemon=True)

    @property
    def engine_pid(self) -> int | None:
        """The warm engine's process, if there is one."""
        return self._engine.pid

    def start(self) -> None:
        """Begin to claim."""
        self._thread.start()

    def wake(self) -> None:
        """There may be work: look now, and return when there is none left or the slot drains."""
        answered = Event()
        self._bell.put(answered)
        while not answered.wait(_JOIN_SECONDS) and self._draining_since is None:
            pass

    def drain(self) -> None:
        """Claim nothing more, give the running unit its last seconds, then end. Safe in a signal handler."""
        if self._draining_since is None:
            self._draining_since = monotonic()
        self._bell.put(None)

    def join(self) -> None:
        """Wait for the end, which comes after `drain`; no longer than a lease for a database that hangs."""
        while self._thread.is_alive() and not self._is_overdue():
            self._thread.join(_JOIN_SECONDS)

    def _is_overdue(self) -> bool:
        patience = self._settings.drain + self._settings.lease + _FAREWELL_SECONDS
        return self._draining_since is not None and monotonic() > self._draining_since + patience

    def _live(self) -> None:
        self._heartbeat.start()
        try:
            while self._draining_since is None:
                self._work_until_none_is_left()
                self._answer()
                self._rest()
        finally:
            self._engine.stop()
            self._answer()
            self._heartbeat.stop(_FAREWELL_SECONDS)
            self._database.dispose()
            self._heart_database.dispose()

    def _work_until_none_is_left(self) -> None:
        pause = _FIRST_RETRY_SECONDS
        while self._drains_since() is None:
            try:
                self._sweep_if_due()
                if not self._claim_and_run():
                    return
                pause = _FIRST_RETRY_SECONDS
            except DBAPIError as error:
                logger.warning("worker %s: the database does not answer: %s", self._identity.id, brief(error))
                self._listen(pause)
                pause = min(2 * pause, _LAST_RETRY_SECONDS)
            except Exception:
                # The slot outlives every mistake; the unit that met it comes back through the reaper.
                logger.exception("worker %s: the claim loop failed", self._identity.id)
                self._listen(_LAST_RETRY_SECONDS)

    def _sweep_if_due(self) -> None:
        """Free what ended units left on this disk; between two units, because it may take a while."""
        if monotonic() >= self._sweep_at:
            self._sweep_at = monotonic() + self._settings.sweep
            sweep(self._settings.work, self._database)
            if self._settings.artifacts_url:
                sweep_copies(self._settings.artifacts, self._database)

    def _rest(self) -> None:
        """Wait for the bell or the next poll; an engine that nobody needed for a while gives its memory back."""
        if self._draining_since is None:
            self._listen(min(self._settings.poll, self._settings.idle_exit or self._settings.poll))
        idle = monotonic() - self._busy_at
        if idle > _IDLE_ENGINE_SECONDS:
            self._engine.stop()
        if 0 < self._settings.idle_exit < idle:
            logger.info("worker %s: no work for %.0f s, leaving", self._identity.id, idle)
            self.drain()

    def _listen(self, seconds: float) -> None:
        try:
            self._note(self._bell.get(timeout=seconds))
            while True:
                self._note(self._bell.get_nowait())
        except Empty:
            pass

    def _note(self, rung: Event | None) -> None:
        if rung is not None:
            self._unanswered.append(rung)

    def _answer(self) -> None:
        while self._unanswered:
            self._unanswered.pop().set()

    def _claim_and_run(self) -> bool:
        asked = monotonic()
        with self._database.transaction() as session:
            claim = leases.claim(session, self._identity, self._lease)
        if claim is None:
            return False
        with (
            observed(claim, self._identity.id) as seen,
            self._heartbeat.hold(claim, asked + self._settings.lease) as lease,
        ):
            seen.ending = self._runner.run(claim, lease, lambda: self._interruption(lease))
            if seen.ending != "succeeded":
                # It may have ended for good.
                self._sweep_at = 0.0
            self._busy_at = monotonic()
            logger.info("%s: %s after %.2f s", described(claim), seen.ending, self._busy_at - asked)
        return True

    def _interruption(self, lease: Lease) -> Interruption | None:
        since = self._drains_since()
        if since is not None and monotonic() > since + self._settings.drain:
            return lease.interruption() or Interruption.DRAINED
        return lease.interruption()

    def _drains_since(self) -> float | None:
        return self._draining_since if self._draining_since is not None else self._heartbeat.draining_since
