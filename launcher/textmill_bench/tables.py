"""The tables that a terminal shows: the levels of a run, and two runs side by side."""

from collections.abc import Sequence
from typing import Any

from textmill_bench.results import Level, Run

COLUMNS = ("load", "requests", "failed", "tok/s", "req/s", "TTFT p50", "p99", "ITL p50", "p99", "e2e p50", "p99")
# Name, unit, and whether more is better, of the figures that two runs are compared by.
COMPARED = (
    ("output_tokens_per_s", None, "tokens/s", True),
    ("requests_per_s", None, "requests/s", True),
    ("ttft_ms", "p50", "TTFT p50, ms", False),
    ("ttft_ms", "p99", "TTFT p99, ms", False),
    ("itl_ms", "p50", "ITL p50, ms", False),
    ("itl_ms", "p99", "ITL p99, ms", False),
    ("e2e_ms", "p50", "e2e p50, ms", False),
    ("e2e_ms", "p99", "e2e p99, ms", False),
    ("num_failed", None, "failed", False),
)


def level_row(level: Level) -> tuple[str, ...]:
    """Return the cells of a level. Times are in milliseconds."""
    figures = level.figures
    times = [_time(figures, name, part) for name in ("ttft_ms", "itl_ms", "e2e_ms") for part in ("p50", "p99")]
    return (
        str(level.load),
        str(figures["num_requests"]),
        str(figures["num_failed"]),
        _number(figures.get("output_tokens_per_s")),
        _number(figures.get("requests_per_s")),
        *times,
    )


def run_table(run: Run) -> str:
    """Return the table of a run."""
    return aligned([COLUMNS, *(level_row(level) for level in run.levels)])


def compared_rows(before: Run, after: Run) -> list[tuple[str, str, str, str, str]]:
    """Return (load, figure, before, after, change) for the loads that both runs have.

    The change is in percent; `better` and `worse` stand where a figure moved by more than a twentieth.
    """
    rows = []
    known = {level.load: level for level in before.levels}
    for level in after.levels:
        if level.load not in known:
            continue
        for name, part, title, more_is_better in COMPARED:
            old, new = (_value(one.figures, name, part) for one in (known[level.load], level))
            rows.append((str(level.load), title, _number(old), _number(new), _change(old, new, more_is_better)))
    return rows


def compared_table(before: Run, after: Run) -> str:
    """Return two runs side by side, or a sentence where no load is in both."""
    rows = compared_rows(before, after)
    if not rows:
        return "no load is in both runs: measure both with equal --concurrency or --rate\n"
    return aligned([("load", "figure", before.label, after.label, "change"), *rows])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines: the first column is aligned to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def _value(figures: dict[str, Any], name: str, part: str | None) -> float | None:
    value = figures.get(name)
    if part is not None:
        value = None if value is None else value[part]
    return None if value is None else float(value)


def _time(figures: dict[str, Any], name: str, part: str) -> str:
    return _number(_value(figures, name, part))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def _change(old: float | None, new: float | None, more_is_better: bool) -> str:
    if old is None or new is None or old == 0:
        return "" if old == new or old is None or new is None else "worse"
    share = new / old - 1
    word = ""
    if abs(share) > 0.05:
        word = " better" if (share > 0) == more_is_better else " worse"
    return f"{100 * share:+.1f} %{word}"
