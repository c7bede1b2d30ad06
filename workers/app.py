"""The Celery app: one queue per worker class, messages that only wake. Loads no torch and opens no database."""

import sys
from collections.abc import Sequence

from celery import Celery

from workers.settings import BrokerSettings

WORK = "workers.tasks.work"
TRANSPORT = {
    "visibility_timeout": 120,
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 25,
}

app = Celery("workers", broker=BrokerSettings().redis_url or "memory://", include=["workers.tasks"])
app.conf.update(
    # A message is a wake-up, so it is acknowledged at once: Celery's redelivery is not what makes work durable.
    task_acks_late=False,
    task_ignore_result=True,
    task_serializer="json",
    accept_content=["json"],
    worker_pool="threads",
    worker_concurrency=1,
    worker_disable_prefetch=True,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options=TRANSPORT,
)


def worker_command(name: str, classes: Sequence[str]) -> list[str]:
    """The command line of one slot: one unit at a time, of these classes. Its environment says where and how."""
    return [sys.executable, "-m", "workers.slot", "--name", name, "--classes", ",".join(classes)]
