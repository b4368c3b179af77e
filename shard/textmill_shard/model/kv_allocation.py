"""Makes the pool of keys and values that was planned, or a smaller one where the memory of a rank has become less."""

import logging
from dataclasses import replace

from textmill_shard.errors import NotEnoughMemory
from textmill_shard.model.graph_recording import Outcome, Together
from textmill_shard.model.memory import KvMemoryPlan
from textmill_shard.model.runner import ModelRunner

log = logging.getLogger(__name__)

KEPT_SHARE = 0.9  # of the blocks, where these find no memory


def allocate_planned_kv(runner: ModelRunner, plan: KvMemoryPlan) -> KvMemoryPlan:
    """Give the runner its pool, and return the plan with the blocks that every rank has. Every rank calls this.

    Memory may be in pieces, or taken by another process since the plan was made. Raises NotEnoughMemory where not even
    one block fits on a rank, and RuntimeError for a fault of another kind.
    """
    together = Together(runner.parallel, runner.device)
    while True:
        num_blocks = plan.num_blocks

        def allocate(num_blocks: int = num_blocks) -> str:
            runner.allocate_kv(num_blocks)
            return ""

        verdict = together.run(allocate)
        if verdict.is_done:
            return plan
        if verdict.outcome is Outcome.FAULT:
            raise RuntimeError(f"the pool of keys and values cannot be made: {verdict.reason}")
        smaller = int(num_blocks * KEPT_SHARE)
        if not smaller:
            raise NotEnoughMemory(f"not even one block of keys and values finds memory: {verdict.reason}")
        log.warning(
            "keys and values of %d tokens find no memory (%s): %d tokens are tried; fewer requests run at a time",
            *(num_blocks * runner.facts.block_size, verdict.reason, smaller * runner.facts.block_size),
        )
        plan = replace(plan, num_blocks=smaller, kv_bytes=(smaller + 1) * runner.kv_bytes_per_block())
