"""The report of a run: JSON and tables, in files that are written after every row, so that a cut run still tells."""

import json
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

MOST_LINES = 30  # of a table; longer ones are counted by the words before the colon


@dataclass(frozen=True, slots=True)
class Row:
    """One measured or compared thing."""

    name: str
    numbers: dict[str, float | str]
    is_fine: bool | None = None  # None: nothing is demanded
    aim: str = ""  # of a measured speed, in words
    meets_aim: bool | None = None  # an aim that is missed is no fault


@dataclass(slots=True)
class Report:
    """The rows of the parts, in the order of `names`. Several threads may write at once."""

    file: Path
    names: Sequence[str] = ()
    parts: dict[str, list[Row]] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)  # part: why there are no rows, or not all
    seconds: dict[str, float] = field(default_factory=dict)  # of a part, the longest of its processes
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def add(self, part: str, row: Row) -> None:
        with self._lock:
            self.parts.setdefault(part, []).append(row)

    def skip(self, part: str, reason: str) -> None:
        with self._lock:
            self.skipped.setdefault(part, []).append(reason)

    def took(self, part: str, seconds: float) -> None:
        with self._lock:
            self.seconds[part] = max(seconds, self.seconds.get(part, 0.0))

    def write(self) -> None:
        """Write the JSON, and the tables beside it, anew. Both files are whole at every moment."""
        with self._lock:
            parts = {name: [asdict(row) for row in self.parts[name]] for name in self._in_order(self.parts)}
            content = {"parts": parts, "skipped": self.skipped, "seconds": self.seconds}
            self._replace(self.file, json.dumps(content, indent=1))
            self._replace(self.file.with_suffix(".md"), "\n".join(self.lines()) + "\n")

    @property
    def faults(self) -> list[str]:
        """The names of the rows that are not as demanded."""
        rows = ((part, row) for part in self._in_order(self.parts) for row in self.parts[part])
        return [f"{part}: {row.name}" for part, row in rows if row.is_fine is False]

    def lines(self) -> Iterator[str]:
        """Return a table in Markdown for each part."""
        for part in self._in_order({*self.parts, *self.skipped}):
            taken = f", {self.seconds[part]:.0f} s" if part in self.seconds else ""
            yield f"\n### {part}{taken}\n"
            rows = self.parts.get(part, [])
            if rows:
                yield from _counted(rows) if len(rows) > MOST_LINES else _table(rows)
            for reason in self.skipped.get(part, []):
                yield f"\nnot whole: {reason}"

    def _replace(self, file: Path, text: str) -> None:
        fresh = self.file.with_suffix(".part")
        fresh.write_text(text)
        fresh.replace(file)

    def _in_order(self, parts: Collection[str]) -> list[str]:
        return [*(name for name in self.names if name in parts), *(name for name in parts if name not in self.names)]


def _table(rows: Sequence[Row]) -> Iterator[str]:
    names = list(dict.fromkeys(name for row in rows for name in row.numbers))
    has_aims = any(row.aim for row in rows)
    yield f"| | {' | '.join(names)} |{' aim |' if has_aims else ''} |"
    yield "|---" * (len(names) + 2 + has_aims) + "|"
    for row in rows:
        cells = " | ".join(_shown(row.numbers.get(name)) for name in names)
        aim = f" {row.aim}{_met(row)} |" if has_aims else ""
        yield f"| {row.name} | {cells} |{aim} {'NOT AS DEMANDED' if row.is_fine is False else ''} |"


def _counted(rows: Sequence[Row]) -> Iterator[str]:
    """Return a line for each word before the colon, then the rows that are not as demanded."""
    yield "| | compared | as demanded | worst, as share of the allowed |"
    yield "|---|---|---|---|"
    for kind in dict.fromkeys(row.name.partition(":")[0] for row in rows):
        of_kind = [row for row in rows if row.name.partition(":")[0] == kind]
        fine = sum(row.is_fine is not False for row in of_kind)
        shares = [
            float(row.numbers["error"]) / float(row.numbers["allowed"])
            for row in of_kind
            if {"error", "allowed"} <= row.numbers.keys()
        ]
        yield f"| {kind} | {len(of_kind)} | {fine} | {_shown(max(shares, default=None))} |"
    faulty = [row for row in rows if row.is_fine is False]
    if faulty:
        yield ""
        yield from _table(faulty)


def _met(row: Row) -> str:
    return "" if row.meets_aim is None else ": met" if row.meets_aim else ": missed"


def _shown(number: float | str | None) -> str:
    if number is None:
        return ""
    return number.replace("|", "/") if isinstance(number, str) else f"{number:.4g}"
