"""The figures of handmade requests, computed apart, and the schedule of a Poisson process."""

import statistics
from itertools import islice, pairwise

import pytest
from textmill_bench.arrivals import poisson_times
from textmill_bench.client import Record
from textmill_bench.figures import figures_of, quantile


def record(due_s: float, sent_s: float, times_s: list[float], done_s: float, **more: object) -> Record:
    facts = {"status": 200, "num_prompt_tokens": 10, "num_output_tokens": len(times_s), **more}
    return Record(due_s, sent_s, tuple(times_s), done_s, **facts)  # type: ignore[arg-type]


def test_figures_of_three_requests_by_hand() -> None:
    figures = figures_of(
        [
            record(0.0, 0.0, [1.0, 1.2, 1.6], 1.7),
            record(0.5, 0.6, [1.5, 1.6], 1.8, num_output_tokens=4),  # two tokens in each event
            record(0.0, 0.0, [], 4.0, status=500, error="no luck", num_output_tokens=0),
        ],
        client_cpu_s=1.0,
    )
    assert (figures["num_requests"], figures["num_failed"]) == (3, 1)
    assert figures["errors"] == [{"status": 500, "error": "no luck", "count": 1}]
    assert figures["duration_s"] == 4.0
    assert figures["num_output_tokens"] == 7
    assert figures["num_prompt_tokens"] == 20
    assert figures["output_tokens_per_s"] == 1.75
    assert figures["requests_per_s"] == 0.5
    assert figures["client_cpu_share"] == 0.25
    means = {name: figures[name]["mean"] for name in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms", "start_delay_ms")}
    assert means == {
        "ttft_ms": 1000.0,  # of 1.0 and 1.5 - 0.5
        "itl_ms": pytest.approx(1000 * (0.2 + 0.4 + 0.1) / 3, abs=0.001),
        "tpot_ms": pytest.approx(1000 * (0.3 + 0.1) / 2, abs=0.001),
        "e2e_ms": 1500.0,  # of 1.7 and 1.8 - 0.5
        "start_delay_ms": pytest.approx(33.333, abs=0.001),
    }
    assert figures["itl_ms"]["quantiles"][0] == pytest.approx(100)
    assert figures["itl_ms"]["quantiles"][50] == pytest.approx(200)
    assert figures["itl_ms"]["quantiles"][100] == figures["itl_ms"]["max"] == pytest.approx(400)


def test_level_without_a_good_request_has_counts_alone() -> None:
    figures = figures_of([record(0.0, 0.0, [], 1.0, error="gone", status=0)])
    assert figures == {"num_requests": 1, "num_failed": 1, "errors": [{"status": 0, "error": "gone", "count": 1}]}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
def test_quantile_is_that_of_the_standard_library(share: float) -> None:
    values = [float(value) for value in (1, 2, 4, 7, 11, 16, 22)]
    cuts = [values[0], *statistics.quantiles(values, n=100, method="inclusive"), values[-1]]
    assert quantile(values, share) == pytest.approx(cuts[round(100 * share)])


def test_arrivals_are_a_poisson_process() -> None:
    times = list(islice(poisson_times(4.0, seed=1), 4001))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert times[0] == 0.0
    # The gaps of a Poisson process are exponential: mean and deviation are 1 / rate, the median is ln 2 / rate.
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.25, rel=0.08)
    assert statistics.median(gaps) == pytest.approx(0.25 * 0.6931, rel=0.08)
    assert times == list(islice(poisson_times(4.0, seed=1), 4001))
    assert times[1] != next(islice(poisson_times(4.0, seed=2), 1, None))
