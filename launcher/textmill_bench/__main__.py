"""`textmill-bench`: measures a server, or shows two results side by side.

The exit code is 0 when every request succeeded, 1 when requests failed, 2 when the run could not begin or go on, and
130 after Ctrl-C. The levels that were complete by then are shown and written.
"""

import asyncio
import os
import sys
from pathlib import Path

from textmill_bench.client import Record
from textmill_bench.errors import BenchError
from textmill_bench.figures import Load
from textmill_bench.options import CompareOptions, RunOptions, read_options
from textmill_bench.page import compared_page, run_page
from textmill_bench.progress import Progress
from textmill_bench.results import Level, Run, read_run, to_csv, to_json
from textmill_bench.run import measure
from textmill_bench.tables import compared_table, run_table

INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    options = read_options(sys.argv[1:], os.environ)
    try:
        sys.exit(_compare(options) if isinstance(options, CompareOptions) else _run(options))
    except BenchError as error:
        print(f"textmill-bench: {error}", file=sys.stderr)
        sys.exit(2)


def _run(options: RunOptions) -> int:
    levels: list[Level] = []
    requests: list[tuple[Load, list[Record]]] = []

    def on_level(level: Level, records: list[Record]) -> None:
        levels.append(level)
        requests.append((level.load, records))

    is_interrupted = False
    try:
        asyncio.run(measure(options, Progress(sys.stderr), on_level))
    except KeyboardInterrupt:
        is_interrupted = True
        print("\nstopped; the levels before are complete", file=sys.stderr)
    run = Run(options.label, options.describe(), tuple(levels))
    print(run_table(run), end="")
    for level in run.levels:
        for kind in level.figures["errors"]:
            print(f"{level.load}: {kind['count']} failed, status {kind['status']}: {kind['error']}", file=sys.stderr)
        if level.figures.get("client_cpu_share", 0.0) > 0.9:
            print(f"{level.load}: this client used a whole core, so the server may be faster", file=sys.stderr)
    if options.output is not None:
        for suffix, text in ((".json", to_json(run)), (".csv", to_csv(requests)), (".html", run_page(run))):
            _write(options.output.with_name(options.output.name + suffix), text)
    if is_interrupted:
        return INTERRUPTED
    return 1 if run.num_failed else 0


def _compare(options: CompareOptions) -> int:
    before, after = read_run(options.before), read_run(options.after)
    print(compared_table(before, after), end="")
    if options.html is not None:
        _write(options.html, compared_page(before, after))
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror}") from None
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
