"""Traces by OpenTelemetry: the request, its stages, the calls to Triton, the jobs that follow from a receipt.

What enters: an OTLP address. What leaves: spans whose names are fixed words and whose attributes are those of
`ATTRIBUTES`; no value of a dataset, UID, path or query has a field to go to. An exception is noted by its type: what
OpenTelemetry would record holds its message. FastAPI's own spans stay off, since they hold path and query.
Without an address the SDK is not imported, and every span is the API's empty one. Decision 18.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

from opentelemetry.context import Context
from opentelemetry.trace import (
    NoOpTracer,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_trace_id,
    get_current_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

OFF: Tracer = NoOpTracer()
PROPAGATOR = TraceContextTextMapPropagator()
TRACEPARENT = "traceparent"  # W3C Trace Context; `tracestate` is free text of the caller and is not passed on
ATTRIBUTES = (  # the allow-list
    "http.request.method", "http.route", "http.response.status_code", "error.type", "rpc.system", "tags.request_id",
    "tags.job_id", "tags.kind", "tags.attempt", "tags.outcome", "tags.reason", "tags.model", "tags.images",
)  # fmt: skip


class Provider(Protocol):
    """What the SDK's tracer provider is to us."""

    def shutdown(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Tracing:
    """The tracer of one process; `close` sends what is left."""

    tracer: Tracer = OFF
    provider: Provider | None = None

    def close(self) -> None:
        """Blocking, for seconds where the collector does not answer."""
        if self.provider:
            self.provider.shutdown()


def open_tracing(otlp_endpoint: str) -> Tracing:
    """Args: otlp_endpoint: of OTLP over HTTP, such as `http://collector:4318/v1/traces`; "" for no traces."""
    if not otlp_endpoint:
        return Tracing()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return tracing_by(BatchSpanProcessor(OTLPSpanExporter(endpoint=otlp_endpoint)))


def tracing_by(processor: Any) -> Tracing:
    """Spans go to `processor`. The global provider is left alone, so that no library adds spans of its own."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    service = {"service.name": "tags", "service.version": version("tags-service")}
    provider = TracerProvider(resource=Resource.create(service))
    provider.add_span_processor(processor)
    return Tracing(provider.get_tracer("tags", version("tags-service")), provider)


@contextmanager
def span(
    tracer: Tracer,
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: str | None = None,
    attributes: Mapping[str, str | int] | None = None,
) -> Iterator[Span]:
    """A span around the block, an error in it noted by type.

    Args: parent: a traceparent that came from elsewhere; the span that is current here by default.
    """
    if tracer is OFF:
        yield get_current_span()
        return
    context = None if parent is None else context_of(parent)
    with tracer.start_as_current_span(
        name, context, kind, attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_status(StatusCode.ERROR)
            current.set_attribute("error.type", getattr(error, "slug", "") or type(error).__name__)
            raise


def context_of(traceparent: str) -> Context:
    """An empty context for anything that is no traceparent."""
    return PROPAGATOR.extract({TRACEPARENT: traceparent}, Context())


def current_traceparent() -> str:
    """Of the current span, for whoever goes on elsewhere; "" without one."""
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier)
    return carrier.get(TRACEPARENT, "")


def current_trace_id() -> str:
    """32 hexadecimal digits, for a log line; "" without a trace."""
    context = get_current_span().get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else ""
