"""Bars on a terminal: how far each child is in its phase of the start. Elsewhere there are lines of the log alone."""

import contextlib
import logging
import shutil
from typing import TextIO

# The records of this logger have `child`, `phase` and `share`, and are drawn, not written. Their level is DEBUG, so
# that a process without `configure_bars` shows none.
LOGGER = "textmill_launcher.progress"
WIDTH = 20  # characters of a bar
_CLEAR = "\r\x1b[K"  # back to the begin of the line, and empty it


# Begins the lines in which a child tells the launcher how far the child is.
_SHARE_MARK = "textmill share "


def share_line(phase: str, share: float) -> str:
    """Return the line by which a child lets the launcher draw its bar; `share` is from 0 to 1."""
    return f"{_SHARE_MARK}{share:.4f} {phase}"


def read_share(line: str) -> tuple[str, float] | None:
    """Return phase and share of a line of `share_line`, or None for any other line."""
    if not line.startswith(_SHARE_MARK):
        return None
    share, _, phase = line.removeprefix(_SHARE_MARK).partition(" ")
    return phase, float(share)


def are_drawn() -> bool:
    """Whether this process draws bars."""
    return logging.getLogger(LOGGER).isEnabledFor(logging.DEBUG)


class StatusLine:
    """The last line of a terminal, which is drawn again and again. Whoever writes a line clears it before."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bars: dict[str, str] = {}
        self._is_drawn = False

    def show(self, child: str, phase: str, share: float) -> None:
        """Draw the bar of a child; `share` is the part of its phase that is done, from 0 to 1."""
        filled = round(WIDTH * min(1.0, max(0.0, share)))
        self._bars[child] = f"{child}: {phase} [{'#' * filled}{'.' * (WIDTH - filled)}] {100 * share:3.0f} %"
        self._draw()

    def remove(self, child: str) -> None:
        """Draw the bar of this child no more."""
        self._bars.pop(child, None)
        self.clear()
        self._draw()

    def clear(self) -> None:
        """Empty the line, so that another text can be written there."""
        if self._is_drawn:
            self._is_drawn = False
            self._write(_CLEAR)

    def _draw(self) -> None:
        if self._bars:
            width = shutil.get_terminal_size().columns - 1  # a full line would make the terminal begin a new one
            self._is_drawn = True
            self._write(_CLEAR + "  ".join(self._bars.values())[:width])

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()


class ClearingHandler(logging.StreamHandler[TextIO]):
    """Writes the lines of the log above the status line."""

    def __init__(self, stream: TextIO, status: StatusLine) -> None:
        super().__init__(stream)
        self._status = status

    def emit(self, record: logging.LogRecord) -> None:
        """Clear the status line, and write the record in its place."""
        self._status.clear()
        super().emit(record)


class _BarHandler(logging.Handler):
    def __init__(self, status: StatusLine) -> None:
        super().__init__()
        self._status = status

    def emit(self, record: logging.LogRecord) -> None:
        child, phase, share = (getattr(record, name) for name in ("child", "phase", "share"))
        if share is None:
            self._status.remove(child)
        else:
            self._status.show(child, phase, share)


def configure_bars(status: StatusLine | None) -> None:
    """Let progress be drawn on the status line, or nowhere."""
    logger = logging.getLogger(LOGGER)
    logger.propagate = False
    logger.handlers = [] if status is None else [_BarHandler(status)]
    logger.setLevel(logging.CRITICAL if status is None else logging.DEBUG)
