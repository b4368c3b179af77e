"""The spans of OpenTelemetry. This file imports OpenTelemetry, so it is imported only where traces are asked for."""

import threading
import time
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from textmill_router.tracing.call_trace import CLIENT_LEFT, Attribute, CallTrace, EndedCall, phases_of

MAX_TEXT = 256  # characters of an attribute
GENERATION_FAILED = 424


class SpanWriter:
    """Makes the spans of each call at its end, and sends them from a thread of OpenTelemetry.

    `endpoint` is the URL of a collector that speaks OTLP over gRPC. The variables of OpenTelemetry decide about the
    sampler, the size of the queue and the headers of the export. Spans that find the queue full are dropped.
    """

    def __init__(self, *, endpoint: str, service_name: str, version: str) -> None:
        resource = Resource.create({"service.name": service_name, "service.version": version})
        self._ids = _GivenTraceId()
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=self._ids)
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=urlsplit(endpoint).scheme == "http")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("textmill_router", version)
        self._propagator = TraceContextTextMapPropagator()

    def end(self, trace: CallTrace, call: EndedCall) -> None:
        """Make the span of the call, and one below it for each phase that the call has completed."""
        to_epoch_ns = time.time_ns() - time.monotonic_ns()

        def epoch_ns(moment_s: float) -> int:
            return to_epoch_ns + round(moment_s * 1e9)

        self._ids.trace_id = int(trace.trace_id, 16)
        span = self._tracer.start_span(
            call.method if call.route is None else f"{call.method} {call.route}",
            context=self._propagator.extract(trace.parent, Context()),
            kind=SpanKind.SERVER,
            attributes=_http_attributes(call),
            start_time=epoch_ns(call.arrival_s),
        )
        if span.is_recording():
            span.set_attributes({name: _shown(value) for name, value in trace.attributes.items()})
            below = set_span_in_context(span, Context())
            for phase in phases_of(trace, call.arrival_s):
                child = self._tracer.start_span(phase.name, context=below, start_time=epoch_ns(phase.start_s))
                child.end(epoch_ns(phase.end_s))
            if _is_fault(call):
                span.set_status(Status(StatusCode.ERROR, call.error_type))
        span.end(epoch_ns(call.end_s))

    def close(self, timeout_s: float) -> bool:
        """Send the spans that wait, for at most `timeout_s` seconds. Return whether all of them could leave in time."""
        thread = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        thread.start()
        thread.join(timeout_s)
        return not thread.is_alive()


class _GivenTraceId(RandomIdGenerator):
    """Gives a trace without a parent the id that the log line of its call shows. Ids of spans are random."""

    trace_id = 0  # of the next span without a parent

    def generate_trace_id(self) -> int:
        return self.trace_id


def _http_attributes(call: EndedCall) -> dict[str, str | int]:
    """Return the attributes of HTTP, by the names of OpenTelemetry's semantic conventions."""
    attributes: dict[str, str | int] = {
        "http.request.method": call.method,
        "url.path": _shown_text(call.path),
        "textmill.request.id": call.request_id,
    }
    if call.route is not None:
        attributes["http.route"] = call.route
    if call.status:
        attributes["http.response.status_code"] = call.status
    if call.error_type is not None:
        attributes["error.type"] = call.error_type
    if call.server is not None:
        attributes["server.address"], attributes["server.port"] = call.server
    return attributes


def _is_fault(call: EndedCall) -> bool:
    """Whether the server is to blame: a status from 500 on, a failed generation, or an error behind an answer's begin.

    The conventions leave the status of a span unset where the client is to blame.
    """
    if call.error_type == CLIENT_LEFT:
        return False
    is_late_error = call.error_type is not None and call.status == 200
    return call.status >= 500 or call.status == GENERATION_FAILED or is_late_error


def _shown(value: Attribute) -> str | bool | int | float | list[str]:
    if isinstance(value, str):
        return _shown_text(value)
    return [_shown_text(text) for text in value] if isinstance(value, list) else value


def _shown_text(text: str) -> str:
    """Return a text that fits a span: short, and without halves of characters, which cannot be encoded."""
    return text[:MAX_TEXT].encode("utf-8", "replace").decode()
