"""The launcher's log and the way a child's lines appear in it: text or one JSON object a line."""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

from textmill_launcher.child_name import ChildName

_PLAIN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """`{"timestamp","level","fields":{"message",...},"target"}`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line of JSON; extras of the call become fields."""
        extras = {name: value for name, value in vars(record).items() if name not in _PLAIN_FIELDS}
        return json.dumps(
            {
                "timestamp": _timestamp(),
                "level": record.levelname,
                "fields": {"message": record.getMessage(), **extras},
                "target": "textmill_launcher",
            },
            default=str,
        )


class TextFormatter(logging.Formatter):
    """`<time> <level> launcher: <message> name=value ...`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or several when the message has several."""
        extras = [f"{name}={value}" for name, value in vars(record).items() if name not in _PLAIN_FIELDS]
        return " ".join([_timestamp(), f"{record.levelname:<7}", "launcher:", record.getMessage(), *extras])


class ChildOutput:
    """Writes the lines of children, each with the child's name and rank."""

    def __init__(self, stream: TextIO, json_output: bool) -> None:
        self._stream = stream
        self._json_output = json_output

    def write(self, child: ChildName, line: str) -> None:
        """Write one line at once. A reader of the log that has gone away does not stop the service."""
        text = _child_json(child, line) if self._json_output else f"{child}: {line}"
        try:
            print(text, file=self._stream, flush=True)
        except OSError:
            return


def configure(json_output: bool, level: str, stream: TextIO = sys.stdout) -> ChildOutput:
    """Set up the launcher's logger and return the writer for children's lines."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if json_output else TextFormatter())
    logger = logging.getLogger("textmill_launcher")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False
    return ChildOutput(stream, json_output)


def _child_json(child: ChildName, line: str) -> str:
    """Add source and rank to a child's JSON line; wrap a line that is no JSON object."""
    origin = {"source": child.role} if child.rank is None else {"source": child.role, "rank": child.rank}
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if isinstance(entry, Mapping):
        return json.dumps({**entry, **origin})
    fields = {"message": line}
    return json.dumps({"timestamp": _timestamp(), "level": "INFO", "fields": fields, "target": child.role, **origin})


def _timestamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
