"""A collector of traces: a gRPC server that keeps the spans that it gets."""

import threading
from concurrent import futures
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class CollectedSpan:
    """A span as it was sent. Times are nanoseconds since 1970; `parent_id` is empty without a parent."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    trace_state: str
    kind: int
    start_ns: int
    end_ns: int
    status: int
    attributes: dict[str, Any]
    service: dict[str, Any]


class SpanCollector(trace_service_pb2_grpc.TraceServiceServicer):
    """A context manager. `url` is the address for --otlp-endpoint. While `is_stuck` no export is answered."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._spans: list[CollectedSpan] = []
        self._may_answer = threading.Event()
        self._may_answer.set()
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._may_answer.set()
        self._server.stop(None).wait(LIMIT_S)

    def stick(self) -> None:
        """Answer no export from now on."""
        self._may_answer.clear()

    def wait_for(self, count: int) -> list[CollectedSpan]:
        """Wait until so many spans have come, and return all of them in the order of their begin."""
        with self._news:
            assert self._news.wait_for(lambda: len(self._spans) >= count, LIMIT_S), self._spans
            return sorted(self._spans, key=lambda span: (span.start_ns, -span.end_ns))

    @property
    def spans(self) -> list[CollectedSpan]:
        """The spans that have come so far."""
        with self._news:
            return list(self._spans)

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Take the spans of one export."""
        self._may_answer.wait(LIMIT_S)
        found = [
            CollectedSpan(
                span.name,
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                span.trace_state,
                span.kind,
                span.start_time_unix_nano,
                span.end_time_unix_nano,
                span.status.code,
                {pair.key: _value(pair.value) for pair in span.attributes},
                {pair.key: _value(pair.value) for pair in of_resource.resource.attributes},
            )
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]
        with self._news:
            self._spans += found
            self._news.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind) if kind is not None else None
