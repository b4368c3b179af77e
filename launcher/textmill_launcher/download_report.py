"""How a download tells its progress: a bar on a terminal, lines elsewhere, JSON, or shares for the launcher's bar."""

import json
import sys
import time
from typing import Protocol, TextIO

from textmill_launcher.log_lines import timestamp
from textmill_launcher.progress_bar import StatusLine, share_line

TELL_EVERY_S = 10.0
MIB = 1024**2
BAR, LINES, JSON, SHARES = "bar", "lines", "json", "shares"
FORMS = (BAR, LINES, JSON, SHARES)


class DownloadReport(Protocol):
    """Where the news of a download go."""

    def tell(self, text: str) -> None:
        """Tell an event in words."""

    def fail(self, text: str) -> None:
        """Tell in one sentence why the download has failed."""

    def show(self, fetched_bytes: int, wanted_bytes: int, elapsed_s: float) -> None:
        """Show how far the download is. `wanted_bytes` is above 0. Called some times a second."""

    def end(self) -> None:
        """Show no progress any more."""


def new_report(form: str, stream: TextIO | None = None) -> DownloadReport:
    """Return the report of one of `FORMS`, to standard error unless a stream is given."""
    stream = sys.stderr if stream is None else stream
    forms: dict[str, type[_Bar] | type[_Lines] | type[_Json] | type[_Shares]] = {
        BAR: _Bar,
        LINES: _Lines,
        JSON: _Json,
        SHARES: _Shares,
    }
    return forms[form](stream)


def form_for(*, json_output: bool, is_terminal: bool, on_terminal: str) -> str:
    """Return the form: JSON where logs are JSON, `on_terminal` on a terminal, and lines elsewhere."""
    if json_output:
        return JSON
    return on_terminal if is_terminal else LINES


class _Lines:
    """A line for each event, and one of progress every ten seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._told_s = time.monotonic()

    def tell(self, text: str) -> None:
        print(f"download: {text}", file=self._stream, flush=True)

    def fail(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def show(self, fetched_bytes: int, wanted_bytes: int, elapsed_s: float) -> None:
        if time.monotonic() - self._told_s >= TELL_EVERY_S:
            self._told_s = time.monotonic()
            share = 100 * fetched_bytes / wanted_bytes
            sizes, speed = _sizes(fetched_bytes, wanted_bytes), _speed(fetched_bytes, elapsed_s)
            self.tell(f"{sizes} ({share:.0f} %), {speed}")

    def end(self) -> None:
        pass


class _Bar:
    """A bar in the last line of a terminal, below the lines of the events."""

    def __init__(self, stream: TextIO) -> None:
        self._lines = _Lines(stream)
        self._status = StatusLine(stream)

    def tell(self, text: str) -> None:
        self._status.clear()
        self._lines.tell(text)

    def fail(self, text: str) -> None:
        self._status.clear()
        self._lines.fail(text)

    def show(self, fetched_bytes: int, wanted_bytes: int, elapsed_s: float) -> None:
        phase = f"{_sizes(fetched_bytes, wanted_bytes)}, {_speed(fetched_bytes, elapsed_s)}"
        self._status.show("download", phase, fetched_bytes / wanted_bytes)

    def end(self) -> None:
        self._status.remove("download")


class _Json:
    """The lines as JSON objects in the form of the launcher's log. Progress has its numbers as fields."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._told_s = time.monotonic()

    def tell(self, text: str) -> None:
        self._write({"message": text})

    def fail(self, text: str) -> None:
        self._write({"message": text}, level="ERROR")

    def show(self, fetched_bytes: int, wanted_bytes: int, elapsed_s: float) -> None:
        if time.monotonic() - self._told_s >= TELL_EVERY_S:
            self._told_s = time.monotonic()
            numbers = {"fetched_bytes": fetched_bytes, "wanted_bytes": wanted_bytes, "elapsed_s": round(elapsed_s, 1)}
            self._write({"message": "fetching", **numbers})

    def end(self) -> None:
        pass

    def _write(self, fields: dict[str, object], level: str = "INFO") -> None:
        line = {"timestamp": timestamp(time.time()), "level": level, "fields": fields, "target": "download"}
        print(json.dumps(line), file=self._stream, flush=True)


class _Shares:
    """Lines for the launcher, which draws the bar itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines = _Lines(stream)

    def tell(self, text: str) -> None:
        self._lines.tell(text)

    def fail(self, text: str) -> None:
        self._lines.fail(text)

    def show(self, fetched_bytes: int, wanted_bytes: int, elapsed_s: float) -> None:
        phase = f"{_sizes(fetched_bytes, wanted_bytes)}, {_speed(fetched_bytes, elapsed_s)}"
        print(share_line(phase, fetched_bytes / wanted_bytes), file=self._stream, flush=True)

    def end(self) -> None:
        pass


def _sizes(fetched_bytes: int, wanted_bytes: int) -> str:
    return f"{fetched_bytes / MIB:.0f} of {wanted_bytes / MIB:.0f} MiB"


def _speed(fetched_bytes: int, elapsed_s: float) -> str:
    return f"{fetched_bytes / max(elapsed_s, 1e-9) / MIB:.1f} MiB/s"
