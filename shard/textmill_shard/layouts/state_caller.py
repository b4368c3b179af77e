"""Calls models whose layers carry state with the state rows of a sub-batch's slots.

Their attention layers read the paged pool.
"""

# B sequences of a sub-batch, n tokens of each

from typing import Any

import torch

from textmill_shard.attention.seam import StepContext
from textmill_shard.layouts.selective_scan import StateScans
from textmill_shard.layouts.state_cache import StateCache
from textmill_shard.layouts.state_rows import StateRows
from textmill_shard.layouts.sub_batches import SubBatch
from textmill_shard.model.kv_pool import KvPool
from textmill_shard.probing.state_probe import call_with_cache


class StateCaller:
    """Calls the model of a sub-batch. The row of a slot is cleared when the first tokens of a text come.

    No other row changes before the end of the step, so that a step that runs out of memory can run again in halves.
    """

    def __init__(self, model: Any, context: StepContext, rows: StateRows, *, device: torch.device) -> None:
        self._model = model
        self._context = context
        self._rows = rows
        self._device = device
        self._scans = StateScans(model)
        self._caches: list[StateCache] = []  # of the sub-batches of the step under way

    def bind(self, pool: KvPool | None) -> None:
        self._context.pool = pool

    def begin_step(self) -> None:
        """Forget the states of a step that failed."""
        self._caches.clear()

    def finish_step(self) -> None:
        """Write the states of all sub-batches into their rows."""
        for cache in self._caches:
            cache.convert()  # needs memory, so this comes before the first row changes
        for cache in self._caches:
            cache.finish()
        self._caches.clear()

    def call(self, sub_batch: SubBatch, **inputs: Any) -> Any:
        batch = sub_batch.batch
        slots_B = batch.slots_R
        if slots_B is None:  # a batch of which only sizes matter (model/memory.py)
            slots_B = torch.full((sub_batch.num_sequences,), self._rows.scratch_row, device=self._device)
        # The scratch row stands in for the slots that go on, because the host does not know how many there are.
        self._rows.clear(slots_B.where(sub_batch.is_fresh_B, self._rows.scratch_row))
        self._context.begin(batch)
        cache = StateCache(self._rows, slots_B)
        with self._scans.running(cache):
            output = call_with_cache(
                self._model,
                cache,
                input_ids=batch.input_ids_T.view(sub_batch.num_sequences, -1),
                position_ids=batch.position_ids_T.view(sub_batch.num_sequences, -1),
                **inputs,
            )
        self._caches.append(cache)
        return output
