"""The report of a run: a JSON file that is written after every part, so that a cut run still tells, and a table."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """One measured or compared thing."""

    name: str
    numbers: dict[str, float | str]
    is_fine: bool | None = None  # None: nothing is demanded


@dataclass(slots=True)
class Report:
    """The rows of the parts, in the order of the parts."""

    file: Path
    parts: dict[str, list[Row]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # part: why there are no rows, or not all

    def add(self, part: str, row: Row) -> None:
        self.parts.setdefault(part, []).append(row)

    def write(self) -> None:
        """Write the file anew. The file is whole at every moment."""
        fresh = self.file.with_suffix(".part")
        parts = {name: [asdict(row) for row in rows] for name, rows in self.parts.items()}
        fresh.write_text(json.dumps({"parts": parts, "skipped": self.skipped}, indent=1))
        fresh.replace(self.file)

    @property
    def faults(self) -> list[str]:
        """The names of the rows that are not as demanded."""
        return [f"{part}: {row.name}" for part, rows in self.parts.items() for row in rows if row.is_fine is False]

    def lines(self) -> Iterator[str]:
        """Return a table in Markdown for each part."""
        for part, rows in self.parts.items():
            names = list(dict.fromkeys(name for row in rows for name in row.numbers))
            yield f"\n### {part}\n"
            yield f"| | {' | '.join(names)} | |"
            yield "|---" * (len(names) + 2) + "|"
            for row in rows:
                cells = " | ".join(_shown(row.numbers.get(name)) for name in names)
                yield f"| {row.name} | {cells} | {'' if row.is_fine is not False else 'NOT AS DEMANDED'} |"
        for part, reason in self.skipped.items():
            yield f"\n{part}: {reason}"


def _shown(number: float | str | None) -> str:
    if number is None:
        return ""
    return number if isinstance(number, str) else f"{number:.4g}"
