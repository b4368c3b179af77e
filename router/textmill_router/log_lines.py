"""How a log record becomes a line: text, or one JSON object a line.

Router, shard and launcher each have a copy of this file, because rooms never import one another. A test holds the
copies equal. What differs between the rooms is given to the formatters by `logs.py` of the room.
"""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime

_PLAIN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class TextFormatter(logging.Formatter):
    """`<time> <level> <origin>: <message> name=value ...`."""

    def __init__(self, origin: Callable[[logging.LogRecord], str]) -> None:
        super().__init__()
        self._origin = origin

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback of an exception below the line."""
        head = (timestamp(record.created), f"{record.levelname:<7}", f"{self._origin(record)}:", record.getMessage())
        line = " ".join([*head, *(f"{name}={value}" for name, value in _extras(record).items())])
        return line + "\n" + self.formatException(record.exc_info) if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """`{"timestamp", "level", "message", <origin>, <extras>}`.

    With `nests_fields`, message and extras lie one level deeper: `{"timestamp", "level", "fields", <origin>}`.
    """

    def __init__(self, origin: Callable[[logging.LogRecord], dict[str, object]], *, nests_fields: bool = False) -> None:
        super().__init__()
        self._origin = origin
        self._nests_fields = nests_fields

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; an exception becomes the field `exception`."""
        line: dict[str, object] = {"timestamp": timestamp(record.created), "level": record.levelname}
        if self._nests_fields:
            line |= {"fields": {"message": record.getMessage(), **_extras(record)}, **self._origin(record)}
        else:
            line |= {"message": record.getMessage(), **self._origin(record), **_extras(record)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def timestamp(seconds: float) -> str:
    """Return seconds since 1970 as a UTC time with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _extras(record: logging.LogRecord) -> dict[str, object]:
    """Return what the call gave as `extra`."""
    return {name: value for name, value in vars(record).items() if name not in _PLAIN_FIELDS}
