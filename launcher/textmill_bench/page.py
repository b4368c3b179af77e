"""One HTML page with the plots and tables of one run, or of two runs side by side. The page loads nothing."""

from collections.abc import Sequence
from html import escape
from typing import Any

from textmill_bench.chart import Axis, Series, line_chart
from textmill_bench.figures import QUANTILES
from textmill_bench.results import Level, Run
from textmill_bench.tables import COLUMNS, compared_rows, level_row

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --paper: #ffffff; --line: #d1d5db; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --paper: #111827; --line: #374151; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1120px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; padding: .5rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 11px; text-anchor: middle; }
svg .title { font-size: 13px; font-weight: 600; text-anchor: start; } svg .up { text-anchor: end; }
svg .grid { stroke: var(--line); stroke-width: .6; } svg polyline { fill: none; stroke-width: 2; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .2rem 0 0; padding: 0;
          font-size: 12px; }
.legend i { display: inline-block; width: 12px; height: 3px; margin-right: 5px; vertical-align: middle; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } .errors { color: #dc2626; }
"""


def run_page(run: Run) -> str:
    """Return the page of one run."""
    body = [
        f"<h1>{escape(run.label)}</h1>",
        _settings(run),
        _charts([run]),
        "<h2>Figures</h2><p>Times are in milliseconds.</p>",
        _table(COLUMNS, [level_row(level) for level in run.levels]),
        _errors(run),
    ]
    return _page(run.label, body)


def compared_page(before: Run, after: Run) -> str:
    """Return the page of two runs: each chart has the lines of both, those of the first run dashed."""
    title = f"{before.label} and {after.label}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>Dashed: {escape(before.label)}. Solid: {escape(after.label)}.</p>",
        _charts([before, after]),
        "<h2>Loads that both runs have</h2>",
        _table(("load", "figure", before.label, after.label, "change"), compared_rows(before, after)),
        *(f"<h2>{escape(run.label)}</h2>{_settings(run)}{_errors(run)}" for run in (before, after)),
    ]
    return _page(title, body)


def _charts(runs: Sequence[Run]) -> str:
    throughput = Axis("output tokens per second")
    share = Axis("share of requests, %")
    charts = [
        _against_throughput("Time to first token against throughput", "TTFT, ms", "ttft_ms", runs, throughput),
        _against_throughput("Inter-token latency against throughput", "ITL, ms", "itl_ms", runs, throughput),
        _distributions("Time to first token", "TTFT, ms", "ttft_ms", runs, share),
        _distributions("Inter-token latency", "ITL, ms", "itl_ms", runs, Axis("share of tokens, %")),
    ]
    return f'<div class="charts">{"".join(f"<figure>{chart}</figure>" for chart in charts)}</div>'


def _against_throughput(title: str, unit: str, name: str, runs: Sequence[Run], x: Axis) -> str:
    series = []
    for is_first, run in _dashed(runs):
        levels = [level for level in run.levels if level.figures.get(name)]
        for colour, part in enumerate(("p50", "p99")):
            points = tuple((level.figures["output_tokens_per_s"], level.figures[name][part]) for level in levels)
            labels = tuple(f"{run.label}, {level.load}: {part} {level.figures[name][part]:g} ms" for level in levels)
            series.append(Series(_name(run, part, runs), points, labels, colour, is_first))
    return line_chart(title, x, Axis(unit, is_logarithmic=_spans_decades(series)), series)


def _distributions(title: str, unit: str, name: str, runs: Sequence[Run], y: Axis) -> str:
    series = []
    loads: list[Any] = []
    for is_first, run in _dashed(runs):
        for level in run.levels:
            if level.figures.get(name):
                if level.load not in loads:
                    loads.append(level.load)
                colour = loads.index(level.load)
                series.append(Series(_name(run, str(level.load), runs), _cumulative(level, name), (), colour, is_first))
    return line_chart(f"{title}: distribution", Axis(unit, is_logarithmic=True), y, series)


def _cumulative(level: Level, name: str) -> tuple[tuple[float, float], ...]:
    quantiles = level.figures[name]["quantiles"]
    return tuple((value, 100 * part / QUANTILES) for part, value in enumerate(quantiles))


def _spans_decades(series: Sequence[Series]) -> bool:
    values = [y for one in series for _, y in one.points if y > 0]
    return bool(values) and max(values) > 30 * min(values)


def _dashed(runs: Sequence[Run]) -> list[tuple[bool, Run]]:
    """Return the runs, and whether their lines are dashed: those of the first of two."""
    return [(len(runs) > 1 and number == 0, run) for number, run in enumerate(runs)]


def _name(run: Run, name: str, runs: Sequence[Run]) -> str:
    return name if len(runs) == 1 else f"{run.label}: {name}"


def _settings(run: Run) -> str:
    shown = ", ".join(f"{name} {value}" for name, value in run.settings.items() if value not in (None, "", False))
    return f"<p>{escape(shown)}</p>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"


def _errors(run: Run) -> str:
    lines = [
        f"<li>{escape(str(level.load))}: {kind['count']} times status {kind['status']}: {escape(kind['error'])}</li>"
        for level in run.levels
        for kind in level.figures["errors"]
    ]
    return f'<h2>Failures</h2><ul class="errors">{"".join(lines)}</ul>' if lines else ""


def _page(title: str, body: Sequence[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>{''.join(body)}</body></html>\n"
    )
