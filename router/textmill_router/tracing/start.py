"""Starts tracing where the settings ask for it. Nothing of OpenTelemetry is imported before."""

from importlib.metadata import version
from typing import TYPE_CHECKING

from textmill_router.extras import check_installed

if TYPE_CHECKING:
    from textmill_router.tracing.span_writer import SpanWriter

_NEEDED = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")


def start_tracing(endpoint: str | None, service_name: str) -> "SpanWriter | None":
    """Return the writer of spans, or None without an endpoint. Raises ExtraMissing."""
    if endpoint is None:
        return None
    check_installed(_NEEDED, extra="otel", setting=f"--otlp-endpoint {endpoint}")
    from textmill_router.tracing.span_writer import SpanWriter

    return SpanWriter(endpoint=endpoint, service_name=service_name, version=version("textmill"))
