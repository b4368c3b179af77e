"""Writes docs/metrics.md from the table of metrics: `python -m textmill_router.metrics.page`."""

import sys

from textmill_router.metrics.exposition import QUANTILES
from textmill_router.metrics.specs import BUCKET_SETS, ROW_SPECS, SPECS, VLLM_SPECS, MetricSpec

_HEAD = """# Metrics

`GET /metrics` answers in the Prometheus text format, without an API key unless `--api-key-metrics` is set. This page is
made from `router/textmill_router/metrics/specs.py` by `make metrics-page`; a test holds it up to date.

The names that begin with `tgi_`, and their labels, come from text-generation-inference (TGI), so that dashboards made
for TGI work. TGI counts some requests twice and never shows some metrics; Textmill counts each request once and shows
each metric. A label value appears with its first event; only the reasons of restarts are there from the start, with 0.
The metrics of the process (`process_...`) stand at the end of the answer.
"""
_ROW_HEAD = """## Models without generation

A model that writes no text has these metrics, beside those of calls, HTTP and health above.
"""
_VLLM_HEAD = """## vLLM's names

With `--metrics-alias vllm` the answer has these gauges too. Endpoint pickers of Kubernetes' InferencePool (llm-d),
KServe and dashboards of vLLM ask for these names. The label `model_name` has the name of the model that answers have:
the first `--served-model-name`, or else `--model-id`. With several replicas the numbers are those of all replicas
together. Without a shard that serves, `vllm:cache_config_info` is left out.
"""


def write_page() -> str:
    """Return the whole page."""
    lines = [_HEAD, "| Name | Type | Labels | Buckets | Meaning |", "|---|---|---|---|---|"]
    lines += [_row(spec) for spec in SPECS]
    lines += ["", "| Buckets | Bounds |", "|---|---|"]
    lines += [f"| {name} | {bounds} |" for name, bounds in BUCKET_SETS.items()]
    quantiles = ", ".join(f"{quantile:g}" for quantile in QUANTILES)
    lines += ["", f"The summary has the quantiles {quantiles} of all observations since the start.", ""]
    lines += [_ROW_HEAD, "| Name | Type | Labels | Buckets | Meaning |", "|---|---|---|---|---|"]
    lines += [_row(spec) for spec in ROW_SPECS]
    lines += ["", _VLLM_HEAD, "| Name | Type | Labels | Meaning |", "|---|---|---|---|"]
    lines += [f"| `{spec.name}` | {spec.kind.value} | {_labels(spec)} | {spec.text} |" for spec in VLLM_SPECS]
    return "\n".join(lines) + "\n"


def _row(spec: MetricSpec) -> str:
    return f"| `{spec.name}` | {spec.kind.value} | {_labels(spec)} | {spec.buckets} | {spec.text} |"


def _labels(spec: MetricSpec) -> str:
    return ", ".join(f"`{label}`" for label in spec.labels)


if __name__ == "__main__":
    sys.stdout.write(write_page())
