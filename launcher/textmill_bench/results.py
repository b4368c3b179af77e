"""The files of a run: JSON with the figures of each level, and CSV with a row for each request."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textmill_bench.client import Record
from textmill_bench.errors import BenchError
from textmill_bench.figures import Load

FORMAT = 1  # of the JSON file
COLUMNS = (
    "load",
    "due_s",
    "start_delay_ms",
    "status",
    "ttft_ms",
    "e2e_ms",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "events",
    "error",
)


@dataclass(frozen=True, slots=True)
class Level:
    """The outcome of one load: `figures` as `figures_of` returns them."""

    load: Load
    figures: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """A run of several loads. `settings` are the flags of the run, without the API key."""

    label: str
    settings: dict[str, Any]
    levels: tuple[Level, ...]

    @property
    def num_failed(self) -> int:
        """The requests of all levels that failed."""
        return sum(level.figures["num_failed"] for level in self.levels)


def to_json(run: Run) -> str:
    """Return the run as a JSON text, which `read_run` reads."""
    levels = [
        {"concurrency": level.load.concurrency, "rate_per_s": level.load.rate_per_s, "figures": level.figures}
        for level in run.levels
    ]
    content = {"format": FORMAT, "label": run.label, "settings": run.settings, "levels": levels}
    return json.dumps(content, indent=1) + "\n"


def read_run(path: Path) -> Run:
    """Return the run of a JSON file. Raises BenchError for a file that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise BenchError(f"{path} has format {content['format']!r}, wanted {FORMAT}: measure again")
        levels = tuple(
            Level(Load(level["concurrency"], level["rate_per_s"]), level["figures"]) for level in content["levels"]
        )
        return Run(str(content["label"]), content["settings"], levels)
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise BenchError(f"{path} is no result of textmill-bench: wanted the JSON file of --output") from None


def to_csv(levels: Sequence[tuple[Load, Sequence[Record]]]) -> str:
    """Return one row for each request, in the order in which they were due. `due_s` counts from the level's begin."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for load, records in levels:
        begin_s = min((record.due_s for record in records), default=0.0)
        for record in sorted(records, key=lambda one: one.due_s):
            writer.writerow(
                [
                    load,
                    f"{record.due_s - begin_s:.4f}",
                    f"{1000 * (record.sent_s - record.due_s):.3f}",
                    record.status,
                    f"{1000 * record.ttft_s:.3f}" if record.event_times_s else "",
                    f"{1000 * record.e2e_s:.3f}",
                    _shown(record.num_prompt_tokens),
                    _shown(record.num_cached_tokens),
                    record.num_output_tokens,
                    len(record.event_times_s),
                    record.error or "",
                ]
            )
    return text.getvalue()


def _shown(count: int | None) -> str:
    return "" if count is None else str(count)
