"""What a check has found."""

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from textmill_launcher.exit_codes import ExitCode


class State(Enum):
    """How bad a finding is. A warning lets the server start."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor: what was looked at, what was found, and what to do about it."""

    state: State
    subject: str
    found: str
    to_do: str = ""
    code: ExitCode = ExitCode.FINE  # with which a start would fail

    def as_text(self) -> str:
        """Return the line: `warning  compiler: none; install gcc`."""
        return f"{self.state.value:<8} {self.subject}: {self.found}" + (f"; {self.to_do}" if self.to_do else "")

    def as_json(self) -> dict[str, Any]:
        """Return the finding as an object."""
        return {**asdict(self), "state": self.state.value, "code": int(self.code)}


def ok(subject: str, found: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(State.OK, subject, found)


def warning(subject: str, found: str, to_do: str) -> Finding:
    """Return a finding that somebody may act upon."""
    return Finding(State.WARNING, subject, found, to_do)


def failure(subject: str, found: str, to_do: str, code: ExitCode) -> Finding:
    """Return a finding that would end the start with `code`."""
    return Finding(State.FAILURE, subject, found, to_do, code)
