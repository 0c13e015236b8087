"""Spans of what a mount does, by OpenTelemetry, for who has installed and configured it.

``pip install 'cafsfs[otel]'`` installs it; the variables of its specification configure it
(``OTEL_EXPORTER_OTLP_ENDPOINT`` and others), and without one that says where spans go nothing of it
is imported. A span is made when it has ended, of its length: nothing is kept while it lasts.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from cafsfs.metrics import Trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

log = logging.getLogger(__name__)

_ASKED_FOR = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
)
_GOODBYE = 2.0  # seconds for the last spans


def is_asked_for(environ: Mapping[str, str] = os.environ) -> bool:
    """Do the variables say where spans go?"""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environ.get("OTEL_TRACES_EXPORTER", "").lower() == "none":
        return False
    return any(environ.get(each) for each in _ASKED_FOR)


@asynccontextmanager
async def tracing(mountpoint: str) -> AsyncIterator[Trace | None]:
    """What makes spans, if that is asked for and installed; at the end the last ones are sent."""
    if not is_asked_for():
        yield None
        return
    try:
        provider = _provider(mountpoint, _batches())
    except ImportError as error:
        log.warning("spans are asked for, and cannot be made: %s (install cafsfs[otel])", error)
        yield None
        return
    try:
        yield tracer_of(provider)
    finally:
        with trio.move_on_after(_GOODBYE, shield=True):
            await trio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)


def tracer_of(provider: TracerProvider) -> Trace:
    """Makes spans that have ended just now."""
    from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415  # an extra

    tracer = provider.get_tracer("cafsfs")

    def trace(
        name: str, seconds: float, attributes: Mapping[str, str | int], error: str | None
    ) -> None:
        now = time.time_ns()
        told = {f"cafsfs.{key}": value for key, value in attributes.items()}
        span = tracer.start_span(name, start_time=now - int(seconds * 1e9), attributes=told)
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(now)

    return trace


def _batches() -> SpanProcessor:
    """Sends spans in batches, from a thread of its own."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415  # an extra
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    return BatchSpanProcessor(OTLPSpanExporter())


def _provider(mountpoint: str, processor: SpanProcessor) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  # an extra
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415

    named = {"service.name": "cafsfs", "cafsfs.mountpoint": mountpoint}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider
