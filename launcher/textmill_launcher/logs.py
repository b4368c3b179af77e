"""The launcher's own log lines, and the lines of its children among them."""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from textmill_launcher.child_name import ChildName
from textmill_launcher.log_lines import JsonFormatter, TextFormatter, timestamp
from textmill_launcher.progress_bar import ClearingHandler, StatusLine, configure_bars


class ChildOutput:
    """The writer of the children's lines, each with the child's name."""

    def __init__(self, stream: TextIO, json_output: bool, status: StatusLine | None = None) -> None:
        self._stream = stream
        self._status = status
        self._json_output = json_output
        self._readers: list[Callable[[ChildName, str], None]] = []

    def read_by(self, reader: Callable[[ChildName, str], None]) -> None:
        """Hand each further line to `reader` too, after the line was written."""
        self._readers.append(reader)

    def write(self, child: ChildName, line: str) -> None:
        """Write one line at once. The service goes on when the log cannot be written, as when its reader has gone."""
        text = _child_json(child, line) if self._json_output else f"{child}: {line}"
        if self._status is not None:
            self._status.clear()
        with contextlib.suppress(OSError):
            print(text, file=self._stream, flush=True)
        for reader in self._readers:
            reader(child, line)


def configure(json_output: bool, level: str, stream: TextIO | None = None) -> ChildOutput:
    """Set up the launcher's logger and return the writer for children's lines. On a terminal there are bars too.

    Without a stream the log goes to stdout.
    """
    stream = sys.stdout if stream is None else stream
    status = StatusLine(stream) if stream.isatty() and not json_output else None
    configure_bars(status)
    handler = logging.StreamHandler(stream) if status is None else ClearingHandler(stream, status)
    handler.setFormatter(
        JsonFormatter(lambda record: {"target": "textmill_launcher"}, nests_fields=True)
        if json_output
        else TextFormatter(lambda record: "launcher")
    )
    logger = logging.getLogger("textmill_launcher")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False
    return ChildOutput(stream, json_output, status)


def _child_json(child: ChildName, line: str) -> str:
    """Add source, rank and replica to a child's JSON line; wrap a line that is no JSON object."""
    numbers = {"rank": child.rank, "replica": child.replica}
    origin = {"source": child.role, **{key: value for key, value in numbers.items() if value is not None}}
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if isinstance(entry, Mapping):
        return json.dumps({**entry, **origin})
    fields = {"message": line}
    return json.dumps(
        {"timestamp": timestamp(time.time()), "level": "INFO", "fields": fields, "target": child.role, **origin}
    )
