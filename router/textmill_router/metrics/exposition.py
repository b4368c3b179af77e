"""Turns numbers into the Prometheus text format: one family for each metric of `specs.py`, and the text of families."""

import math
from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from textmill_router.metrics.histogram import Histogram
from textmill_router.metrics.specs import MetricKind, MetricSpec
from textmill_router.metrics.step_metrics import StepKind

QUANTILES = (0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def write_text(families: Iterable[Metric]) -> bytes:
    """Return the families in the Prometheus text format, without the families that have no sample.

    HELP and TYPE carry the name of the samples, also for counters.
    """
    lines = []
    for family in families:
        if not family.samples:
            continue
        # The library names a counter's samples `<name>_total`. `labelled_counters` gives its samples another name,
        # and the counters of the library's own collectors keep theirs.
        name = family.samples[0].name if family.type == "counter" else family.name
        lines.append(f"# HELP {name} {_escape(family.documentation)}")
        lines.append(f"# TYPE {name} {family.type}")
        for sample in family.samples:
            labels = ",".join(f'{key}="{_escape(value, quote=True)}"' for key, value in sample.labels.items())
            shown = f"{sample.name}{{{labels}}}" if labels else sample.name
            lines.append(f"{shown} {_number(sample.value)}")
    return ("\n".join(lines) + "\n").encode()


def gauge_family(spec: MetricSpec, value: float) -> Metric:
    """Return a gauge without labels."""
    assert spec.kind is MetricKind.GAUGE, spec
    return GaugeMetricFamily(spec.name, spec.text, value=value)


def labelled_gauges(spec: MetricSpec, rows: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    """Return a gauge with one sample for each row of label values."""
    assert spec.kind is MetricKind.GAUGE, spec
    family = GaugeMetricFamily(spec.name, spec.text, labels=spec.labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def counter_family(spec: MetricSpec, value: float) -> Metric:
    """Return a counter without labels."""
    return labelled_counters(spec, [((), value)])


def labelled_counters(spec: MetricSpec, rows: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    """Return a counter with one sample for each row of label values."""
    assert spec.kind is MetricKind.COUNTER, spec
    family = CounterMetricFamily(spec.name, spec.text)
    for values, value in rows:
        family.add_sample(spec.name, dict(zip(spec.labels, values, strict=True)), value)
    return family


def histogram_family(spec: MetricSpec, histogram: Histogram) -> Metric:
    """Return a histogram without labels."""
    assert spec.kind is MetricKind.HISTOGRAM, spec
    return HistogramMetricFamily(spec.name, spec.text, buckets=histogram.buckets(), sum_value=histogram.sum)


def histograms_by_kind(spec: MetricSpec, histograms: dict[StepKind, Histogram]) -> Metric:
    """Return a family with one histogram for each kind of step; the kind is the value of the label."""
    family = HistogramMetricFamily(spec.name, spec.text, labels=spec.labels)
    for kind, histogram in histograms.items():
        family.add_metric([kind.value], histogram.buckets(), histogram.sum)
    return family


def summary_family(spec: MetricSpec, counts: Counter[int]) -> Metric:
    """Return a summary with the exact quantiles of whole numbers that were counted by value.

    The family has no sample while nothing was counted.
    """
    family = Metric(spec.name, spec.text, spec.kind.value)
    total = sum(counts.values())
    if not total:
        return family
    ordered = sorted(counts.items())
    for quantile in QUANTILES:
        rank, seen, found = quantile * (total - 1), 0, 0
        for value, count in ordered:
            found = value
            seen += count
            if seen > rank:
                break
        family.add_sample(spec.name, {"quantile": f"{quantile:g}"}, found)
    family.add_sample(spec.name + "_sum", {}, sum(value * count for value, count in ordered))
    family.add_sample(spec.name + "_count", {}, total)
    return family


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)
    return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")


def _escape(text: str, *, quote: bool = False) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace('"', '\\"') if quote else escaped
