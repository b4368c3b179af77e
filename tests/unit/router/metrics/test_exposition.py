"""The text of /metrics, as prometheus_client's own parser reads it, and quantiles compared with numpy's."""

import math
from collections import Counter

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from textmill_router.metrics.exposition import (
    QUANTILES,
    counter_family,
    gauge_family,
    labelled_counters,
    labelled_gauges,
    summary_family,
    write_text,
)
from textmill_router.metrics.specs import MetricKind, MetricSpec

GAUGE = MetricSpec("textmill_size", MetricKind.GAUGE, 'A \\ backslash, a "quote"\nand a line.', ("state",))
COUNTER = MetricSpec("textmill_calls", MetricKind.COUNTER, "Calls.", ("route", "status"))
SUMMARY = MetricSpec("textmill_skipped", MetricKind.SUMMARY, "Skipped.")


def read(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize("value", ["plain", 'a "quote"', "a \\ backslash", "two\nlines", "\\n is no line"])
def test_values_of_labels_come_back_from_a_parser(value: str) -> None:
    text = write_text([labelled_gauges(GAUGE, [((value,), 3)])])
    assert read(text) == {("textmill_size", (("state", value),)): 3}


@pytest.mark.parametrize("value", [0, 7, 0.25, 2**60, 1e-9, math.inf, -math.inf])
def test_numbers_come_back_from_a_parser(value: float) -> None:
    assert read(write_text([gauge_family(GAUGE, value)])) == {("textmill_size", ()): value}


def test_a_counter_has_one_name_in_its_head_and_in_its_samples() -> None:
    rows = [(("/generate", "200"), 4.0), (("/generate", "429"), 1.0)]
    assert write_text([labelled_counters(COUNTER, rows)]).decode().splitlines() == [
        "# HELP textmill_calls Calls.",
        "# TYPE textmill_calls counter",
        'textmill_calls{route="/generate",status="200"} 4',
        'textmill_calls{route="/generate",status="429"} 1',
    ]


def test_a_family_without_samples_is_left_out() -> None:
    empty = labelled_counters(COUNTER, [])
    only = MetricSpec("textmill_steps", MetricKind.COUNTER, "Steps.")
    assert write_text([empty, counter_family(only, 2), summary_family(SUMMARY, Counter())]).decode().splitlines() == [
        "# HELP textmill_steps Steps.",
        "# TYPE textmill_steps counter",
        "textmill_steps 2",
    ]


@pytest.mark.parametrize("values", [[5], [1, 2], [0, 0, 0, 9], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5] * 7])
def test_a_summary_has_the_exact_quantiles(values: list[int]) -> None:
    found = read(write_text([summary_family(SUMMARY, Counter(values))]))
    for quantile in QUANTILES:
        expected = np.quantile(values, quantile, method="lower")
        assert found["textmill_skipped", (("quantile", f"{quantile:g}"),)] == expected, quantile
    assert found["textmill_skipped_sum", ()] == sum(values)
    assert found["textmill_skipped_count", ()] == len(values)
