"""Looks at what flags ask for beside serving: files, traces, and events of the KV cache."""

import socket
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urlsplit

from textmill_launcher.doctor.finding import Finding, failure, ok, warning
from textmill_launcher.doctor.machine_checks import port_finding
from textmill_launcher.exit_codes import ExitCode
from textmill_launcher.flag_files import FlagFile, flag_files
from textmill_launcher.settings import Settings

CONNECT_TIMEOUT_S = 3.0
OTLP_PORT = 4317


def check_outlets(settings: Settings) -> Iterator[Finding]:
    """Yield what is found. Nothing is yielded for what no flag asks for."""
    yield from map(_file, flag_files(settings))
    if settings.otlp_endpoint is not None:
        yield _extra("--otlp-endpoint", "otel", "opentelemetry-exporter-otlp-proto-grpc")
        yield _collector(settings.otlp_endpoint)
    if settings.kv_events_port is not None:
        yield _extra("--kv-events-port", "kv-events", "pyzmq")
        replay_port = settings.kv_events_replay_port or settings.kv_events_port + 1
        yield port_finding("port of KV events", settings.hostname, settings.kv_events_port, "--kv-events-port")
        yield port_finding("port of the replay", settings.hostname, replay_port, "--kv-events-replay-port")


def _file(file: FlagFile) -> Finding:
    subject, reason = f"file of {file.flag}", file.why_unreadable()
    if reason is not None:
        return failure(subject, f"{file.path}: {reason}", f"another {file.flag}", ExitCode.WRONG_SETTING)
    return ok(subject, file.path)


def _extra(flag: str, extra: str, package: str) -> Finding:
    subject = f"packages of {flag}"
    try:
        return ok(subject, f"{package} {version(package)}")
    except PackageNotFoundError:
        to_do = f"pip install 'textmill[{extra}]', or leave {flag} and its variables out"
        return failure(subject, f"{package} is not installed", to_do, ExitCode.WRONG_SETTING)


def _collector(endpoint: str) -> Finding:
    """Say whether something listens there. A server starts without a collector, so this is no failure."""
    parts = urlsplit(endpoint)
    host, port = parts.hostname or "", parts.port or OTLP_PORT
    try:
        with socket.create_connection((host, port), CONNECT_TIMEOUT_S):
            return ok("collector of traces", f"{host}:{port} listens")
    except OSError as error:
        reason = error.strerror or str(error)
        return warning(
            "collector of traces", f"{host}:{port}: {reason}", "start the collector, or change --otlp-endpoint"
        )
