"""Traces from a job's submission to its units, where GLUE_TRACES=otlp asks for them and OpenTelemetry is installed.

A job's trace has ids that follow from the job's id, so nothing has to be carried: the API and every worker know them.
Where traces go is said by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, ...).
"""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any

Attributes = Mapping[str, str | int | float]

_forced: ContextVar[tuple[int, int] | None] = ContextVar("forced", default=None)


def job_ids(job_id: str) -> tuple[int, int]:
    """The 128-bit id of a job's trace and the 64-bit id of its root span; neither is 0."""
    digest = hashlib.sha256(job_id.encode()).digest()
    return int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:24]) or 1


@contextmanager
def unit_span(job_id: str, name: str, attributes: Attributes) -> Iterator[Any]:
    """A span of one unit below its job's root, or nothing; what it yields takes `set_attribute` if it is a span."""
    tracer = _tracer()
    if tracer is None:
        with nullcontext() as nothing:
            yield nothing
        return
    with tracer.start_as_current_span(name, context=_below_job(job_id), attributes=dict(attributes)) as span:
        yield span


def submission_span(job_id: str, began: float, attributes: Attributes) -> None:
    """The root span of a job: its submission, from `began` (as `time.time()`) to now."""
    tracer = _tracer()
    if tracer is None:
        return
    from opentelemetry import context

    token = _forced.set(job_ids(job_id))
    try:
        span = tracer.start_span(
            "job.submit", context=context.Context(), start_time=int(began * 1e9), attributes=dict(attributes)
        )
    finally:
        _forced.reset(token)
    span.end(int(time.time() * 1e9))


def flush_traces(milliseconds: int = 2000) -> None:
    """Send what is not sent yet, before the process ends."""
    tracer = _tracer()
    if tracer is not None:
        from opentelemetry import trace

        trace.get_tracer_provider().force_flush(milliseconds)  # type: ignore[attr-defined]


def _below_job(job_id: str) -> Any:
    from opentelemetry import trace

    trace_id, span_id = job_ids(job_id)
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    root = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)
    return trace.set_span_in_context(trace.NonRecordingSpan(root))


@cache
def _tracer() -> Any:
    """Made on first use, in the process that uses it: an exporter's thread does not survive a fork."""
    if os.environ.get("GLUE_TRACES") != "otlp":
        return None
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class JobIds(RandomIdGenerator):
        """Random ids, but for the root span of a job."""

        def generate_trace_id(self) -> int:
            forced = _forced.get()
            return forced[0] if forced else super().generate_trace_id()

        def generate_span_id(self) -> int:
            forced = _forced.get()
            return forced[1] if forced else super().generate_span_id()

    provider = TracerProvider(id_generator=JobIds())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return trace.get_tracer("model-glue")
