"""What a process of parts is told, and what it tells: one JSON object on a line each.

The process that supervises reads the lines, and has a report also of parts whose process crashed or was killed.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.gpu.report import Row


@dataclass(frozen=True, slots=True)
class Job:
    """What a process of parts is to do."""

    table: str  # module whose `start(job)` returns the workbench
    is_dry: bool
    left_s: float  # seconds until the end of the run
    parts: tuple[str, ...]
    trace_file: str
    number: int = 0  # of the items of each part, this process does every `of`-th, from the item `number` on
    of: int = 1
    done: tuple[str, ...] = ()  # items that need not be done again
    rates: Mapping[str, float] = field(default_factory=dict)  # measured before

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @staticmethod
    def of_line(line: str) -> "Job":
        said: dict[str, Any] = json.loads(line)
        return Job(**{**said, "parts": tuple(said["parts"]), "done": tuple(said["done"])})


@dataclass(frozen=True, slots=True)
class Told:
    """One line of a process of parts."""

    kind: str
    text: str = ""
    row: Row | None = None
    rates: Mapping[str, float] = field(default_factory=dict)

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @staticmethod
    def of_line(line: str) -> "Told":
        said: dict[str, Any] = json.loads(line)
        row = said["row"]
        return Told(**{**said, "row": None if row is None else Row(**row)})


class CannotRun(Exception):
    """A part cannot run on this machine. `str()` is the reason, which ends a sentence."""


REFUSED = "refused"  # nothing can run on this machine, for the reason of the text
PART = "part"  # the part of the text begins
ITEM = "item"  # the item of the text begins
ROW = "row"
RATES = "rates"  # of the machine
LEFT_OUT = "left out"  # the part of the text does not begin, because too little time is left
NOT_RUN = "not run"  # the part under way cannot run on this machine, for the reason of the text
FAILED = "failed"  # the part under way failed for the reason of the text, and the next one begins
BROKEN = "broken"  # the device answers no more, for the reason of the text, and the process ends
END = "end"  # of the part under way
