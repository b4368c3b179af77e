"""The log of the router: its own lines, and complaints of the web server and of OpenTelemetry."""

import logging
import sys
from typing import TextIO

from textmill_router.log_lines import JsonFormatter, TextFormatter


def configure_logging(*, json_output: bool, level: str, stream: TextIO = sys.stdout) -> None:
    """Send the router's lines from a level up, and the warnings of web server and tracing, to one stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(_place) if json_output else TextFormatter(lambda record: record.name))
    for name, least in (
        *(("textmill_router", level), ("uvicorn", "WARNING"), ("opentelemetry", "WARNING")),
        ("python_multipart", "ERROR"),  # which warns of each form that a client has broken
    ):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(least)
        logger.propagate = False


def _place(record: logging.LogRecord) -> dict[str, object]:
    return {"target": record.name, "filename": record.filename, "line_number": record.lineno}
