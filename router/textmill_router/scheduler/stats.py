"""The scheduler's numbers, for metrics."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from textmill_router.scheduler.epoch import Counters, Epoch
from textmill_router.scheduler.waiting_queue import WaitingQueue


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """Numbers at one moment. Counts of blocks and slots are 0 while no epoch is live; `num_*_total` only grow."""

    num_running: int
    num_waiting: int
    num_waiting_tokens: int
    num_free_blocks: int
    num_held_blocks: int
    num_cached_blocks: int  # in the prefix index, held by no request
    num_blocks: int
    num_free_slots: int
    num_slots: int
    num_preemptions_total: int
    num_readmissions_total: int
    num_recomputed_tokens_total: int
    num_starvations_total: int
    num_prefix_hit_tokens_total: int
    num_prefix_lookup_tokens_total: int
    num_prompt_tokens_computed_total: int
    num_output_tokens_total: int
    num_steps_total: int
    num_epochs_total: int


@dataclass(slots=True)
class AdapterLoad:
    """The requests of one adapter at one moment."""

    num_running: int = 0
    num_waiting: int = 0  # for a slot, preempted ones included


def collect_stats(epoch: Epoch | None, queue: WaitingQueue, counters: Counters) -> SchedulerStats:
    """The numbers of this moment."""
    slots = epoch.slots if epoch else None
    blocks = epoch.cache.pool if epoch else None
    return SchedulerStats(
        num_running=epoch.num_running if epoch else 0,
        num_waiting=len(queue),
        num_waiting_tokens=queue.num_tokens,
        num_free_blocks=blocks.num_free if blocks else 0,
        num_held_blocks=blocks.num_held if blocks else 0,
        num_cached_blocks=blocks.num_cached if blocks else 0,
        num_blocks=blocks.num_blocks if blocks else 0,
        num_free_slots=slots.num_free if slots else 0,
        num_slots=slots.num_slots if slots else 0,
        num_preemptions_total=counters.num_preemptions,
        num_readmissions_total=counters.num_readmissions,
        num_recomputed_tokens_total=counters.num_recomputed_tokens,
        num_starvations_total=counters.num_starvations,
        num_prefix_hit_tokens_total=counters.num_prefix_hit_tokens,
        num_prefix_lookup_tokens_total=counters.num_prefix_lookup_tokens,
        num_prompt_tokens_computed_total=counters.num_prefill_tokens,
        num_output_tokens_total=counters.num_output_tokens,
        num_steps_total=counters.num_steps,
        num_epochs_total=counters.num_epochs,
    )


def add_stats(parts: Sequence[SchedulerStats]) -> SchedulerStats:
    """The numbers of several schedulers together."""
    return SchedulerStats(*(sum(getattr(part, name.name) for part in parts) for name in fields(SchedulerStats)))
