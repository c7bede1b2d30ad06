"""Hears the database announce work, on a connection of its own that comes back when it is lost."""

import logging
from time import sleep

import psycopg
from sqlalchemy import make_url

from glue.records.outbox import CHANNEL
from glue.specs.plan import WorkerClass
from workers.logs import brief

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 5
_RETRY_SECONDS = 1.0


class Listener:
    """To be used by one thread."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection: psycopg.Connection | None = None

    def wait(self, seconds: float) -> set[str]:
        """The worker classes announced, as soon as there is one, or none after so many seconds.

        After every new connection all classes: nobody knows what was announced before. While the database is away
        it waits and hears nothing.
        """
        try:
            if self._connection is None:
                self._connect()
                return {*WorkerClass}
            return self._hear(self._connection, seconds)
        except psycopg.Error as error:
            logger.warning("no announcements are heard, the database does not answer: %s", brief(error))
            self.close()
            sleep(min(seconds, _RETRY_SECONDS))
            return set()

    def close(self) -> None:
        """Give the connection back; the next `wait` opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> None:
        self._connection = psycopg.connect(
            self._url, autocommit=True, connect_timeout=_CONNECT_SECONDS, application_name="glue listener"
        )
        self._connection.execute(f"LISTEN {CHANNEL}")

    def _hear(self, connection: psycopg.Connection, seconds: float) -> set[str]:
        return {announced.payload for announced in connection.notifies(timeout=seconds, stop_after=1)}
