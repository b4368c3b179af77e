"""The metrics of adapters, by the names that the adapters have at the scrape."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric

from textmill_router.metrics import specs
from textmill_router.metrics.exposition import gauge_family, histogram_family, labelled_counters, labelled_gauges
from textmill_router.metrics.histogram import Histogram

MAX_NAMES = 256


@dataclass(frozen=True, slots=True)
class AdapterNumbers:
    """The numbers of one loaded adapter."""

    name: str
    num_requests: int  # since the name was given
    num_running: int
    num_waiting: int


@dataclass(frozen=True, slots=True)
class AllAdapters:
    """The numbers of all loaded adapters. `num_bytes` is what they take on a rank."""

    adapters: Sequence[AdapterNumbers]
    num_bytes: int
    load_s: Histogram


def adapter_families(numbers: AllAdapters) -> Iterator[Metric]:
    """Yield the families. Names beyond the first 256 have no sample, because a label with many values costs memory."""
    shown = numbers.adapters[:MAX_NAMES]
    yield labelled_counters(specs.ADAPTER_REQUESTS, [((one.name,), one.num_requests) for one in shown])
    yield labelled_gauges(specs.ADAPTER_RUNNING, [((one.name,), one.num_running) for one in shown])
    yield labelled_gauges(specs.ADAPTER_WAITING, [((one.name,), one.num_waiting) for one in shown])
    yield gauge_family(specs.ADAPTERS_LOADED, len(numbers.adapters))
    yield gauge_family(specs.ADAPTERS_BYTES, numbers.num_bytes)
    yield histogram_family(specs.ADAPTERS_LOAD_TIME, numbers.load_s)


def vllm_lora_family(numbers: AllAdapters) -> Metric:
    """Return the gauge that gateways of Kubernetes read to find servers on which an adapter is active."""
    running = ",".join(one.name for one in numbers.adapters[:MAX_NAMES] if one.num_running)
    waiting = ",".join(one.name for one in numbers.adapters[:MAX_NAMES] if one.num_waiting)
    labels = (str(len(numbers.adapters)), running, waiting)
    return labelled_gauges(specs.VLLM_LORA_INFO, [(labels, time.time())] if numbers.adapters else [])
