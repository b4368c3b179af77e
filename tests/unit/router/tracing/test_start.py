"""OpenTelemetry is imported only where traces are asked for, and a missing package names the extra that brings it."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
from textmill_router import extras
from textmill_router.extras import ExtraMissing
from textmill_router.settings import SettingsError, load_settings
from textmill_router.tracing.start import start_tracing

MODULES = """
import sys
from textmill_router.outlets import open_outlets
from textmill_router import extras
from textmill_router.extras import ExtraMissing
from textmill_router.settings import Settings
flags = dict(model_dir="/m", model_id="m", shard_uds_path=("/s",))
open_outlets(Settings(**flags))
assert not [name for name in sys.modules if name.startswith(("opentelemetry", "zmq"))]
spans = open_outlets(Settings(**flags, otlp_endpoint="http://127.0.0.1:1")).spans
assert "opentelemetry.sdk.trace" in sys.modules
spans.close(2.0)
"""


def test_nothing_is_imported_without_an_endpoint() -> None:
    subprocess.run([sys.executable, "-c", MODULES], check=True, timeout=60)


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc"])
def test_missing_package_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = extras.find_spec

    def find_spec(name: str, *further: Any) -> ModuleSpec | None:
        if name.startswith(missing + "."):
            raise ModuleNotFoundError(name)
        return None if name == missing else real(name, *further)

    monkeypatch.setattr(extras, "find_spec", find_spec)
    with pytest.raises(ExtraMissing, match=r"pip install 'textmill\[otel\]'"):
        start_tracing("http://127.0.0.1:4317", "textmill-router")
    assert start_tracing(None, "textmill-router") is None


NEEDED = ["--model-dir", "/m", "--model-id", "m", "--shard-uds-path", "/s"]


@pytest.mark.parametrize(
    ("argv", "environ", "endpoint"),
    [
        ([], {}, None),
        (["--otlp-endpoint", "http://c"], {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://other"}, "http://c:4317"),
        ([], {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c:1/", "OTLP_ENDPOINT": "http://other"}, "https://c:1"),
        ([], {"OTLP_ENDPOINT": "http://[::1]:5"}, "http://[::1]:5"),
        (
            [],
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://d"},
            "http://c:4317",
        ),
    ],
)
def test_endpoint_comes_from_the_flag_or_a_variable(
    argv: list[str], environ: dict[str, str], endpoint: str | None
) -> None:
    assert load_settings([*NEEDED, *argv], environ).otlp_endpoint == endpoint


@pytest.mark.parametrize("value", ["c:4317", "grpc://c:4317", "http://c:4317/v1/traces", "http://"])
def test_other_addresses_are_refused(value: str) -> None:
    with pytest.raises(
        SettingsError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT is .* wanted http:// or https:// with a host"
    ):
        load_settings(NEEDED, {"OTEL_EXPORTER_OTLP_ENDPOINT": value})


def test_service_name_has_a_variable_that_others_read_too() -> None:
    assert load_settings(NEEDED, {}).otlp_service_name == "textmill-router"
    assert load_settings(NEEDED, {"OTEL_SERVICE_NAME": "mill"}).otlp_service_name == "mill"
