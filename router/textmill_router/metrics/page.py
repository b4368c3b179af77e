"""Writes docs/metrics.md from the table of metrics: `python -m textmill_router.metrics.page`."""

import sys

from textmill_router.metrics.exposition import QUANTILES
from textmill_router.metrics.specs import BUCKET_SETS, SPECS, MetricSpec

_HEAD = """# Metrics

`GET /metrics` answers in the Prometheus text format, without an API key unless `--api-key-metrics` is set. This page is
made from `router/textmill_router/metrics/specs.py` by `make metrics-page`; a test holds it up to date.

The names that begin with `tgi_`, and their labels, come from text-generation-inference (TGI), so that dashboards made
for TGI work. TGI counts some requests twice and never shows some metrics; Textmill counts each request once and shows
each metric. A label value appears with its first event. The metrics of the process (`process_...`) stand at the end
of the answer.
"""


def write_page() -> str:
    """Return the whole page."""
    lines = [_HEAD, "| Name | Type | Labels | Buckets | Meaning |", "|---|---|---|---|---|"]
    lines += [_row(spec) for spec in SPECS]
    lines += ["", "| Buckets | Bounds |", "|---|---|"]
    lines += [f"| {name} | {bounds} |" for name, bounds in BUCKET_SETS.items()]
    quantiles = ", ".join(f"{quantile:g}" for quantile in QUANTILES)
    lines += ["", f"The summary has the quantiles {quantiles} of all observations since the start."]
    return "\n".join(lines) + "\n"


def _row(spec: MetricSpec) -> str:
    labels = ", ".join(f"`{label}`" for label in spec.labels)
    return f"| `{spec.name}` | {spec.kind.value} | {labels} | {spec.buckets} | {spec.text} |"


if __name__ == "__main__":
    sys.stdout.write(write_page())
