"""The service's metrics in Prometheus's form, and the port that they are read from. Loads no torch, opens no database.

Every process has the same names; each fills those that it knows. docs/operations.md explains them.
"""

import logging
from collections.abc import Iterable

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, start_http_server
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)

_UNIT_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

REQUESTS = Histogram(
    "glue_api_request_seconds",
    "Time until the answer of a request began",
    ["method", "route", "status"],
    buckets=_REQUEST_SECONDS,
)
UNITS = Histogram(
    "glue_unit_seconds", "Time from a unit's claim to its ending", ["kind", "ending"], buckets=_UNIT_SECONDS
)
SCORES = Counter("glue_scores", "Candidates scored, by whether the score was computed or found", ["cache"])
MERGED_BYTES = Counter("glue_merged_bytes", "Bytes of the folders that merges, mixtures and reports wrote", ["kind"])
HEARTBEATS = Counter("glue_heartbeats", "Heartbeats of workers, by whether the database took them", ["result"])
BUSY = Gauge("glue_worker_busy", "1 while the worker runs a unit")
ENGINE_BYTES = Gauge("glue_engine_resident_bytes", "Main memory of the worker's engine process")
HOME_FREE_BYTES = Gauge("glue_home_free_bytes", "Free space where artifacts and partial work lie")
REAPED = Counter("glue_leases_reaped", "Expired leases that were taken back")
WAKE_UPS = Counter("glue_wake_ups", "Wake-ups published", ["worker_class"])
TRANSFERRED = Counter("glue_artifact_transfer_bytes", "Artifact bytes to and from object storage", ["direction"])


def serve_metrics(port: int, collectors: Iterable[Collector] = ()) -> None:
    """Answer scrapes on this port, in a thread; 0 means not at all. `collectors` are asked at each scrape.

    A port that is taken, as by another process on the same machine, is told in the log and costs no work.
    """
    if not port:
        return
    for collector in collectors:
        REGISTRY.register(collector)
    try:
        start_http_server(port)
    except OSError as error:
        logger.error("no metrics on port %d: %s", port, error)
    else:
        logger.info("metrics on port %d", port)
