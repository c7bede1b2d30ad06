"""The queue as gauges, read from the records at each scrape. Counts only; changes nothing."""

import logging
from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import DBAPIError

from glue.records.database import Database
from glue.records.measures import Measures, measure
from glue.specs.plan import WorkerClass
from glue.telemetry.metrics import WAKE_UPS
from workers.logs import brief

logger = logging.getLogger(__name__)

_STATES = ("ready", "leased")
_STATUSES = ("queued", "running", "paused", "cancelling")


class QueueCollector(Collector):
    """Queue depth and age by class, active jobs by status, present workers by class.

    Every replica says the same, so readers take the largest. While the database is away there are no gauges, which
    is what an alert on their absence sees.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        for worker_class in WorkerClass:
            WAKE_UPS.labels(worker_class)

    def collect(self) -> Iterable[Metric]:
        """The gauges of this moment."""
        try:
            with self._database.transaction() as session:
                return _gauges(measure(session))
        except DBAPIError as error:
            logger.warning("no measures of the queue: %s", brief(error))
            return []

    def describe(self) -> Iterable[Metric]:
        """Names only: registering asks no database."""
        return []


def _gauges(measures: Measures) -> list[Metric]:
    depth = GaugeMetricFamily("glue_queue_units", "Unfinished units", labels=["worker_class", "state"])
    age = GaugeMetricFamily(
        "glue_queue_oldest_seconds", "How long the oldest ready unit could have been claimed", labels=["worker_class"]
    )
    found = {(each.worker_class, each.state): each for each in measures.queue}
    for worker_class in WorkerClass:
        for state in _STATES:
            entry = found.get((worker_class, state))
            depth.add_metric([worker_class, state], entry.units if entry else 0)
        ready = found.get((worker_class, "ready"))
        age.add_metric([worker_class], ready.oldest if ready else 0.0)
    jobs = GaugeMetricFamily("glue_jobs", "Jobs that have not ended", labels=["status"])
    for status in _STATUSES:
        jobs.add_metric([status], measures.jobs.get(status, 0))
    workers = GaugeMetricFamily(
        "glue_workers", "Workers seen lately, by the classes they serve", labels=["worker_class"]
    )
    for worker_class in WorkerClass:
        workers.add_metric([worker_class], measures.workers.get(worker_class, 0))
    return [depth, age, jobs, workers]
