"""Which rows make up a step: a fixed rule without freedom, so that every rank composes the same step.

Every running slot decodes; then one pass over the prefills in the order of admission, each at most the chunk; then
what is left of the budget in the same order. The last chunk of a prompt samples in the same step. A slot whose places
are used up is skipped and reported once (rule 13). A slot whose grammar is not compiled yet leaves the last token of
its prompt for later (rule 19). What an encoder reads is not cut: it is in one step, or waits for the next (rule 16).
"""

# R rows of the step

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from textmill_shard.slots.plan import NO_IDS, Budget, IdArray
from textmill_shard.slots.slot_table import SlotTable


@dataclass(frozen=True, slots=True)
class ComposedStep:
    """The rows of one step: decodes by slot number, then prefills by admission. Arrays are parallel unless named."""

    slots_R: IdArray
    starts_R: IdArray  # position of the first token that the row computes
    counts_R: IdArray  # tokens that the row computes
    samples_R: npt.NDArray[np.bool_]
    starved_slots: IdArray  # to report now
    is_decode: bool  # every row computes the token sampled last, and samples

    @property
    def is_empty(self) -> bool:
        return not len(self.slots_R)

    @property
    def num_tokens(self) -> int:
        return int(self.counts_R.sum())


def compose_step(table: SlotTable, budget: Budget) -> ComposedStep:
    """Choose the rows of the next step and mark the slots reported starved. Nothing else changes."""
    has_places = table.num_computed < table.num_places
    is_runnable = table.is_occupied & has_places
    starved_slots = NO_IDS
    runnable_slots = np.flatnonzero(is_runnable)
    if len(runnable_slots) < table.num_occupied:
        starved_slots = np.flatnonzero(table.is_occupied & ~has_places & ~table.was_starved)
        table.was_starved[starved_slots] = True
    if not table.is_prefilling[runnable_slots].any():
        return _decode_step(table, runnable_slots, starved_slots)
    decode_slots = np.flatnonzero(is_runnable & ~table.is_prefilling)
    prefill_slots = np.flatnonzero(is_runnable & table.is_prefilling)
    prefill_slots = prefill_slots[np.argsort(table.order[prefill_slots], kind="stable")]
    num_free = min(budget.max_step_tokens - len(decode_slots), budget.max_prefill_tokens)
    share = _share_whole if table.num_encoder[prefill_slots].any() else _share_budget
    counts = share(table, prefill_slots, num_free=num_free, max_chunk_tokens=budget.max_chunk_tokens)
    has_chunk = counts > 0
    slots_R = np.concatenate([decode_slots, prefill_slots[has_chunk]])
    counts_R = np.concatenate([np.ones(len(decode_slots), dtype=np.int64), counts[has_chunk]])
    starts_R = table.num_computed[slots_R]
    return ComposedStep(
        slots_R=slots_R,
        starts_R=starts_R,
        counts_R=counts_R,
        samples_R=starts_R + counts_R == table.num_tokens[slots_R],
        starved_slots=starved_slots,
        is_decode=False,
    )


def _decode_step(table: SlotTable, slots_R: IdArray, starved_slots: IdArray) -> ComposedStep:
    """Most steps: nothing to share out. Python between two forward passes leaves the cores idle, so it is short."""
    counts_R, samples_R = _all_ones(len(slots_R))
    return ComposedStep(
        slots_R=slots_R,
        starts_R=table.num_computed[slots_R],
        counts_R=counts_R,
        samples_R=samples_R,
        starved_slots=starved_slots,
        is_decode=True,
    )


@cache
def _all_ones(num_rows: int) -> tuple[IdArray, npt.NDArray[np.bool_]]:
    """Counts and marks of a step of so many rows in which all decode. To be read only."""
    counts_R, samples_R = np.ones(num_rows, dtype=np.int64), np.ones(num_rows, dtype=bool)
    counts_R.flags.writeable = samples_R.flags.writeable = False
    return counts_R, samples_R


def _share_budget(table: SlotTable, slots: IdArray, *, num_free: int, max_chunk_tokens: int) -> IdArray:
    """Tokens for each of `slots` (in order of admission): first at most a chunk each, then what is left."""
    wanted = _wanted(table, slots)
    counts = _take_in_order(np.minimum(wanted, max_chunk_tokens), num_free)
    return counts + _take_in_order(wanted - counts, num_free - int(counts.sum()))


def _share_whole(table: SlotTable, slots: IdArray, *, num_free: int, max_chunk_tokens: int) -> IdArray:
    """The same where encoders read: a slot gets at least what its encoder has not read yet, or nothing.

    The first in order always gets it: a text that no step can hold is not admitted.
    """
    wanted = _wanted(table, slots)
    least = np.maximum(table.num_encoder[slots] - table.num_computed[slots], 0)
    counts = np.zeros(len(slots), dtype=np.int64)
    for most in (np.maximum(np.minimum(wanted, max_chunk_tokens), least), wanted):
        for row in range(len(slots)):
            count = min(int(most[row] - counts[row]), num_free)
            if counts[row] + count >= least[row]:
                counts[row] += count
                num_free -= count
    return counts


def _wanted(table: SlotTable, slots: IdArray) -> IdArray:
    """Tokens that a slot could compute now, as far as its places go."""
    num_tokens = table.num_tokens[slots] - table.is_held[slots]
    wanted: IdArray = np.maximum(np.minimum(num_tokens, table.num_places[slots]) - table.num_computed[slots], 0)
    return wanted


def _take_in_order(wanted: IdArray, num_free: int) -> IdArray:
    """Give each what it wants while the budget lasts; the one at the border gets the rest."""
    taken_before = np.cumsum(wanted) - wanted
    taken: IdArray = np.minimum(np.maximum(num_free - taken_before, 0), wanted)
    return taken
