"""A terminal that keeps what was written to it."""

import io

CLEAR = "\r\x1b[K"  # back to the begin of the line, and empty it


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown_at_last(terminal: Terminal) -> str:
    """Return the last line as a reader of the terminal sees it."""
    return terminal.getvalue().rpartition("\n")[2].rpartition(CLEAR)[2]
