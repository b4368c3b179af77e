"""Log lines of the router: text, or one JSON object a line."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

_PLAIN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """`{"timestamp", "level", "message", "target", "filename", "line_number", ...extras}`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; an exception becomes the field `exception`."""
        line: dict[str, object] = {
            "timestamp": _timestamp(record),
            "level": record.levelname,
            "message": record.getMessage(),
            "target": record.name,
            "filename": record.filename,
            "line_number": record.lineno,
        }
        line |= _extras(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """`<time> <level> <logger>: <message> name=value ...`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback of an exception below it."""
        extras = [f"{name}={value}" for name, value in _extras(record).items()]
        line = " ".join([_timestamp(record), f"{record.levelname:<7}", f"{record.name}:", record.getMessage(), *extras])
        return line + "\n" + self.formatException(record.exc_info) if record.exc_info else line


def configure_logging(*, json_output: bool, level: str, stream: TextIO = sys.stdout) -> None:
    """Send our lines and the web server's complaints to one stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if json_output else TextFormatter())
    for name, least in (("textmill_router", level), ("uvicorn", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(least)
        logger.propagate = False


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _PLAIN_FIELDS}


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
