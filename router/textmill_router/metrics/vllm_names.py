"""The metrics under vLLM's names (`--metrics-alias vllm`), which endpoint pickers and vLLM's dashboards read."""

from collections.abc import Iterator

from prometheus_client.core import Metric

from textmill_router.metrics import specs
from textmill_router.metrics.exposition import labelled_gauges
from textmill_router.scheduler.scheduler import SchedulerStats


def vllm_families(stats: SchedulerStats, block_size: int, model_name: str) -> Iterator[Metric]:
    """Yield the gauges of `specs.VLLM_SPECS`. `stats` counts all replicas together, `block_size` is in tokens.

    The sizes of the KV cache are left out while no shard serves, because a cache without blocks is no configuration.
    """
    for spec, value in (
        (specs.VLLM_RUNNING, stats.num_running),
        (specs.VLLM_WAITING, stats.num_waiting),
        (specs.VLLM_KV_USAGE, stats.num_held_blocks / max(1, stats.num_blocks)),
    ):
        yield labelled_gauges(spec, [((model_name,), value)])
    if stats.num_blocks:
        labels = (model_name, str(block_size), str(stats.num_blocks))
        yield labelled_gauges(specs.VLLM_CACHE_CONFIG, [(labels, 1)])
