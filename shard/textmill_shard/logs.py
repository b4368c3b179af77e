"""Log lines of a shard, each with its rank: text, or one JSON object a line."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

_PLAIN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """`{"timestamp", "level", "message", "target", "rank", ...extras}`."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; an exception becomes the field `exception`."""
        line: dict[str, object] = {
            "timestamp": _timestamp(record),
            "level": record.levelname,
            "message": record.getMessage(),
            "target": record.name,
            "rank": self._rank,
        }
        line |= _extras(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """`<time> <level> <logger> rank=<rank>: <message> name=value ...`."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback of an exception below it."""
        extras = [f"{name}={value}" for name, value in _extras(record).items()]
        origin = f"{record.name} rank={self._rank}:"
        line = " ".join([_timestamp(record), f"{record.levelname:<7}", origin, record.getMessage(), *extras])
        return line + "\n" + self.formatException(record.exc_info) if record.exc_info else line


def configure_logging(*, rank: int, json_output: bool, level: str, stream: TextIO = sys.stderr) -> None:
    """Send the shard's lines to one stream. stdout stays free for what `convert` prints."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(rank) if json_output else TextFormatter(rank))
    logger = logging.getLogger("textmill_shard")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _PLAIN_FIELDS}


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
