"""The table of the comparison: the figures of a run, and our figure as a multiple of the best peer's."""

from argparse import Namespace

from bench.compare import KINDS, table, workloads


def _entry(server: str, figure: float | None, *, is_rate: bool, workload: str = "w", foreign: float = 0.0) -> dict:
    return {
        "workload": workload,
        "unit": "u",
        "is_rate": is_rate,
        "server": server,
        "figure": figure,
        "foreign_cores": foreign,
    }


def test_rate_is_divided_by_the_best_peer():
    results = [_entry(name, figure, is_rate=True) for name, figure in [("textmill", 30.0), ("a", 20.0), ("b", 10.0)]]
    assert table(results).splitlines()[-1] == "| w | u | 30.0 | 20.0 | 10.0 | 1.50 | 0.0 |"


def test_best_peer_is_divided_by_a_time():
    results = [
        _entry("textmill", 200.0, is_rate=False),
        _entry("a", 100.0, is_rate=False, foreign=0.3),
        _entry("b", 500.0, is_rate=False),
    ]
    assert table(results).splitlines()[-1] == "| w | u | 200.0 | 100.0 | 500.0 | 0.50 | 0.3 |"


def test_failed_peer_is_left_out_of_the_ratio():
    results = [_entry("textmill", 8.0, is_rate=True), _entry("a", None, is_rate=True), _entry("b", 4.0, is_rate=True)]
    assert table(results).splitlines()[-1] == "| w | u | 8.0 | failed | 4.0 | 2.00 | 0.0 |"


def test_no_ratio_without_a_peer():
    assert "| - |" in table([_entry("textmill", 8.0, is_rate=True)])


def _chosen(*kinds: str) -> list[tuple[int, str]]:
    arguments = Namespace(streams=[1, 8], input_len=4, output_len=2, workloads=kinds)
    return [(number, workload.name) for number, workload in workloads(arguments)]


def test_a_chosen_workload_keeps_the_prompts_that_it_has_among_all():
    every = _chosen(*KINDS)
    assert [number for number, _ in every] == list(range(6))
    assert _chosen("ttft-1024", "streams") == [every[0], every[1], every[3]]
    assert every[3][1] == "TTFT of 1024 tokens"
    assert _chosen("shared-at-once") == every[5:]
