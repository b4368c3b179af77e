"""vLLM's names of metrics while no shard serves; tests/contract/test_metrics_alias.py holds the other values."""

from textmill_router.metrics.vllm_names import vllm_families
from textmill_router.scheduler.epoch import Counters
from textmill_router.scheduler.stats import collect_stats
from textmill_router.scheduler.waiting_queue import WaitingQueue


def test_a_cache_without_blocks_is_no_configuration() -> None:
    away = collect_stats(None, WaitingQueue(max_requests=1, max_tokens=1), Counters())
    shown = {family.name: [sample.value for sample in family.samples] for family in vllm_families(away, 16, "m")}
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    assert shown == {f"vllm:{name}": [0] for name in names}
