"""The outermost layer of the app: request id, one log line, metrics, and the one place that catches everything.

A plain ASGI middleware, so that a request's body and disconnection pass through untouched. An unforeseen error ends
here and goes no further: the server's own traceback would print its message, which may quote a data element.
"""

from __future__ import annotations

import time

from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import problem
from service.errors import InternalError
from service.telemetry.metrics import Metrics
from service.telemetry.request_log import RequestLog, RequestRecord, describe_fault, request_id
from service.telemetry.tracing import OFF, TRACEPARENT, current_trace_id, span

UNTRACED = ("/health/live", "/health/ready", "/metrics")  # asked every few seconds, and the same each time
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  # any other is the sender's own text


class RequestBoundary:
    """Wraps the app. Holds nothing between requests."""

    def __init__(self, app: ASGIApp, log: RequestLog, metrics: Metrics, tracer: Tracer = OFF) -> None:
        self._app, self._log, self._metrics, self._tracer = app, log, metrics, tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        method = scope["method"] if scope["method"] in METHODS else "other"
        record = RequestRecord(request_id(headers.get("x-request-id")), method)
        scope.setdefault("state", {})["record"] = record
        tracer = OFF if scope["path"] in UNTRACED else self._tracer
        parent = headers.get(TRACEPARENT, "")
        with span(tracer, method, kind=SpanKind.SERVER, parent=parent) as current:
            record.trace_id = current_trace_id()
            try:
                await self._answer(scope, receive, send, record)
            finally:
                describe(current, record)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = record.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            record.slug, record.fault = InternalError.slug, describe_fault(error)
            if not record.status:
                detail = "The service failed on this request; please report the request id given as instance."
                await problem(InternalError(detail), record.request_id)(scope, receive, send_with_id)
        finally:
            record.seconds = round(time.perf_counter() - started, 4)
            record.route = getattr(scope.get("route"), "path", record.route)
            self._metrics.requests.labels(record.route, record.status, record.slug).inc()
            self._metrics.request_seconds.labels(record.route).observe(record.seconds)
            self._metrics.observe_stages({name: ms / 1000 for name, ms in record.stages_ms.items()})
            self._log.write(record)


def describe(current: Span, record: RequestRecord) -> None:
    """What a span says of a request: less than the log line, and nothing that it does not say."""
    current.update_name(f"{record.method} {record.route}")
    known: dict[str, str | int] = {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "error.type": record.slug,
        "tags.request_id": record.request_id,
    }
    current.set_attributes({name: value for name, value in known.items() if value})
    if record.status >= 500 or record.slug == InternalError.slug:
        current.set_status(StatusCode.ERROR)
