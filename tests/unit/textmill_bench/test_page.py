"""Pages and tables: what is drawn is where the numbers say, and texts of a server cannot become markup."""

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from textmill_bench.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Series, line_chart
from textmill_bench.figures import Load
from textmill_bench.page import compared_page, run_page
from textmill_bench.results import Level, Run, read_run, to_json
from textmill_bench.tables import compared_rows, compared_table, run_table


def figures(scale: float, **more: Any) -> dict[str, Any]:
    times = {"mean": scale, "p50": scale, "p90": 2 * scale, "p99": 4 * scale, "max": 5 * scale}
    times["quantiles"] = [scale * (1 + part / 25) for part in range(101)]  # type: ignore[assignment]
    each = {name: dict(times) for name in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms")}
    counts = {"num_requests": 10, "num_failed": 0, "errors": [], "requests_per_s": 2.0}
    return {**counts, "output_tokens_per_s": 1000 / scale, **each, **more}


def run_of(label: str, *scales: float, **more: Any) -> Run:
    levels = tuple(Level(Load(concurrency=2**number), figures(scale, **more)) for number, scale in enumerate(scales))
    return Run(label, {"url": "http://x"}, levels)


def svg_of(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search(r"<svg.*?</svg>", text, re.DOTALL)[0])  # type: ignore[index]


def places(text: str) -> list[tuple[float, float]]:
    [line] = svg_of(text).iter("polyline")
    return [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]  # type: ignore[misc]


def test_points_stand_where_the_numbers_say() -> None:
    chart = line_chart("t", Axis("x"), Axis("y"), [Series("s", ((0, 0), (50, 5), (100, 10)))])
    middle = ((LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2)
    assert places(chart) == [(LEFT, HEIGHT - BOTTOM), pytest.approx(middle, abs=0.1), (WIDTH - RIGHT, TOP)]
    logarithmic = line_chart(
        "t", Axis("x", is_logarithmic=True), Axis("y"), [Series("s", ((0, 1), (1, 5), (10, 10), (100, 10)))]
    )
    first, second, third = places(logarithmic)  # 0 has no place on this axis
    assert (first[0], third[0]) == (LEFT, WIDTH - RIGHT)
    assert second[0] == pytest.approx((first[0] + third[0]) / 2, abs=0.1)


def test_ticks_are_round_numbers_inside_the_chart() -> None:
    chart = line_chart("t", Axis("x"), Axis("y"), [Series("s", ((0, 0), (87, 0.013)))])
    ticks = [element for element in svg_of(chart).iter("text") if "tick" in element.attrib.get("class", "")]
    shown = [float(element.text or "") for element in ticks]
    assert shown[:5] == [0, 20, 40, 60, 80]
    assert shown[5:] == [0, 0.005, 0.01]


def test_page_of_a_run_shows_each_load_and_loads_nothing() -> None:
    page = run_page(run_of("mine", 10, 20, 40))
    assert page.count("<svg") == 4
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)
    assert all(load in page for load in ("1 at once", "2 at once", "4 at once"))
    assert not re.search(r"<script|<link|<img|src=|href=|url\(", page)


def test_texts_of_a_server_are_no_markup() -> None:
    kind = [{"status": 500, "error": "<script>alert(1)</script>", "count": 2}]
    page = run_page(run_of("<b>", 10, errors=kind, num_failed=2))
    assert "<script>" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;" in page


def test_runs_are_compared_where_both_have_a_load() -> None:
    before, after = run_of("old", 10, 20), run_of("new", 8)
    rows = compared_rows(before, after)
    assert {row[0] for row in rows} == {"1 at once"}
    assert ("1 at once", "TTFT p50, ms", "10", "8", "-20.0 % better") in rows
    assert ("1 at once", "tokens/s", "100", "125", "+25.0 % better") in rows
    assert ("1 at once", "requests/s", "2", "2", "+0.0 %") in rows
    assert "old" in compared_table(before, after).splitlines()[0]
    assert compared_page(before, after).count("stroke-dasharray") == 2 * 2 + 2 * 2
    other = Run("rates", {}, (Level(Load(rate_per_s=1.0), figures(1)),))
    assert compared_table(before, other).startswith("no load is in both runs")


def test_result_file_is_read_back(tmp_path: Any) -> None:
    run = run_of("mine", 10, 20)
    (tmp_path / "r.json").write_text(to_json(run))
    assert read_run(tmp_path / "r.json") == run


def test_table_has_a_line_for_each_load() -> None:
    lines = run_table(run_of("mine", 10, 2000)).splitlines()
    assert lines[1].split() == ["1", "at", "once", "10", "0", "100", "2", *["10", "40"] * 3]
    assert lines[2].split()[-2:] == ["2000", "8000"]
