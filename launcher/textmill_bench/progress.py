"""Live progress: one line that is drawn again on a terminal, and a line for each level elsewhere."""

import contextlib
import shutil
import time
from typing import TextIO

from textmill_bench.client import Record
from textmill_bench.figures import Load

REDRAW_S = 0.2
_CLEAR = "\r\x1b[K"


class Progress:
    """Shows how far a level is: answers, failures, and output tokens per second so far."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()

    def begin(self, load: Load, num_requests: int) -> None:
        """Begin a level."""
        self._load, self._num_requests = load, num_requests
        self._num_done = self._num_failed = self._num_tokens = 0
        self._begin_s = time.monotonic()
        self._drawn_s = 0.0
        self._draw()

    def note(self, record: Record) -> None:
        """Count a request that has ended."""
        self._num_done += 1
        self._num_failed += not record.is_good
        self._num_tokens += record.num_output_tokens if record.is_good else 0
        if time.monotonic() - self._drawn_s >= REDRAW_S:
            self._draw()

    def end(self) -> None:
        """End the level with a line that stays."""
        self._write((_CLEAR if self._is_terminal else "") + self._line() + "\n")

    def _draw(self) -> None:
        if self._is_terminal:
            self._drawn_s = time.monotonic()
            self._write(_CLEAR + self._line()[: shutil.get_terminal_size().columns - 1])

    def _line(self) -> str:
        elapsed_s = max(1e-3, time.monotonic() - self._begin_s)
        failed = f", {self._num_failed} failed" if self._num_failed else ""
        return (
            f"{self._load}: {self._num_done} of {self._num_requests} requests{failed}, "
            f"{self._num_tokens / elapsed_s:.1f} tokens/s, {elapsed_s:.0f} s"
        )

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()
