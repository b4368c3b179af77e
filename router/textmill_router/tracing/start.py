"""Starts tracing where the settings ask for it. Nothing of OpenTelemetry is imported before."""

from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textmill_router.tracing.span_writer import SpanWriter

_NEEDED = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")


class ExtraMissing(Exception):
    """Packages that a setting needs are not installed. The message names the extra that brings them."""


def start_tracing(endpoint: str | None, service_name: str) -> "SpanWriter | None":
    """Return the writer of spans, or None without an endpoint. Raises ExtraMissing."""
    if endpoint is None:
        return None
    missing = next((name for name in _NEEDED if not _is_installed(name)), None)
    if missing is not None:
        raise ExtraMissing(
            f"--otlp-endpoint is {endpoint!r}, and {missing} is not installed: install the extra otel "
            "(pip install 'textmill[otel]'), or leave the flag and OTEL_EXPORTER_OTLP_ENDPOINT out"
        )
    from textmill_router.tracing.span_writer import SpanWriter

    return SpanWriter(endpoint=endpoint, service_name=service_name, version=version("textmill"))


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a package above is missing
        return False
