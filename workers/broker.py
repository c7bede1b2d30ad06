"""Wake-ups on their way to the slots. Knows nothing of why they are sent."""

from typing import Protocol

import redis
from sqlalchemy import func, select

from glue.records.database import Database
from glue.records.outbox import CHANNEL
from workers.app import TRANSPORT, WORK, app


class Carrier(Protocol):
    """Brings wake-ups to slots; it may lose, double and reorder them."""

    def publish(self, worker_class: str) -> None:
        """Say that there is work of this class."""

    def holds(self, worker_class: str) -> bool:
        """Whether a wake-up for this class still waits to be taken."""


class Broker:
    """Through Celery's broker. Both methods raise what the broker's client raises when it does not answer."""

    def __init__(self, url: str) -> None:
        self._queues = redis.Redis.from_url(
            url, socket_timeout=TRANSPORT["socket_timeout"], socket_connect_timeout=TRANSPORT["socket_connect_timeout"]
        )

    def publish(self, worker_class: str) -> None:
        """Send a message to the queue of this class."""
        app.send_task(WORK, args=[worker_class], queue=worker_class, retry=False)

    def holds(self, worker_class: str) -> bool:
        """Whether the queue of this class has a message."""
        return bool(self._queues.llen(worker_class))


class Announcements:
    """Through the database, to slots that listen because there is no broker."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def publish(self, worker_class: str) -> None:
        """Notify whoever listens at this moment."""
        with self._database.transaction() as session:
            session.execute(select(func.pg_notify(CHANNEL, worker_class)))

    def holds(self, worker_class: str) -> bool:
        """Never: what nobody hears is gone."""
        return False
