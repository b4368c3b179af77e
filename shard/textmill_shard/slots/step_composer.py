"""Which rows make up a step. The rule leaves no choice, so that every rank composes the same step.

Every slot that decodes has one token in the step. The prefills of one caller stand in the order of admission: a first
pass gives each of them at most one chunk of the budget, a second pass gives away the rest. Several callers share the
budget chunk by chunk (rule 16, `prefill_shares.py`). The last chunk of a prompt samples in its step. A slot whose
places are used up is skipped, and reported once (rule 13). A full slot is skipped, because its last token is on its
way to the host (rule 7). A slot whose grammar is not compiled yet leaves the last token of its prompt for a later step
(rule 19). A slot computes up to the first image whose rows are not there yet (rule 33). Some ranges of tokens, such as
the text that an encoder reads, are never cut: all of a range is in one step, or the slot waits for a later step (rule
16).
"""

# R rows of the step

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from textmill_shard.slots.plan import NO_IDS, Budget, IdArray
from textmill_shard.slots.prefill_shares import FitChunk
from textmill_shard.slots.slot_table import SlotTable, TokenRange


@dataclass(frozen=True, slots=True)
class ComposedStep:
    """The rows of one step: decodes by slot number, then prefills in order of admission. The arrays are parallel."""

    slots_R: IdArray
    starts_R: IdArray  # position of the first token that the row computes
    counts_R: IdArray  # tokens that the row computes
    samples_R: npt.NDArray[np.bool_]
    starved_slots: IdArray  # to be reported with this step
    is_decode: bool  # every row computes the token sampled last, and samples

    @property
    def is_empty(self) -> bool:
        """Whether the step has no row."""
        return not len(self.slots_R)

    @property
    def num_tokens(self) -> int:
        """The number of tokens that the step computes."""
        return int(self.counts_R.sum())


def split_step(step: ComposedStep) -> tuple[ComposedStep, ComposedStep]:
    """Return the first and the second half of the rows of a step that has two rows or more, each as a step."""
    rows_R = np.arange(len(step.slots_R))
    first_rows, last_rows = np.array_split(rows_R, [len(rows_R) // 2])
    return select_rows(step, first_rows, starved_slots=step.starved_slots), select_rows(step, last_rows)


def select_rows(step: ComposedStep, rows: IdArray, *, starved_slots: IdArray = NO_IDS) -> ComposedStep:
    """Return some of the rows of a step as a step, which reports `starved_slots`."""
    return ComposedStep(
        slots_R=step.slots_R[rows],
        starts_R=step.starts_R[rows],
        counts_R=step.counts_R[rows],
        samples_R=step.samples_R[rows],
        starved_slots=starved_slots,
        is_decode=step.is_decode,
    )


def compose_step(table: SlotTable, budget: Budget) -> ComposedStep:
    """Choose the rows of the next step. The table notes which starved slots are reported, and what callers have had."""
    has_places = table.num_computed < table.num_places
    goes_on = table.is_occupied & (table.num_tokens < table.max_tokens)
    is_runnable = goes_on & has_places
    if table.num_with_media:
        is_runnable &= table.num_computed < table.ready_until
    if table.num_apart:
        is_runnable &= ~table.is_apart
    starved_slots = NO_IDS
    runnable_slots = np.flatnonzero(is_runnable)
    if len(runnable_slots) < table.num_occupied:
        starved_slots = np.flatnonzero(goes_on & ~has_places & ~table.was_starved)
        table.was_starved[starved_slots] = True
    if not table.is_prefilling[runnable_slots].any():
        return _decode_step(table, runnable_slots, starved_slots)
    decode_slots = np.flatnonzero(is_runnable & ~table.is_prefilling)
    prefill_slots = np.flatnonzero(is_runnable & table.is_prefilling)
    prefill_slots = prefill_slots[np.argsort(table.order[prefill_slots], kind="stable")]
    num_free = min(budget.max_step_tokens - len(decode_slots), budget.max_prefill_tokens)
    counts = _share_of(table, prefill_slots)(
        table, prefill_slots, num_free=num_free, max_chunk_tokens=budget.max_chunk_tokens
    )
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
    """Compose a step in which every row decodes, as in most steps.

    The code is short, because the cores are idle while Python runs between two forward passes.
    """
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
    """Return the counts and the sampling marks of a step in which so many rows decode. Both arrays are read-only."""
    counts_R, samples_R = np.ones(num_rows, dtype=np.int64), np.ones(num_rows, dtype=bool)
    counts_R.flags.writeable = samples_R.flags.writeable = False
    return counts_R, samples_R


def _share_of(table: SlotTable, slots: IdArray) -> Callable[..., IdArray]:
    """Return the rule that shares the budget of prefills among these slots, which are in the order of admission."""
    callers = table.callers[slots]
    if (callers != callers[0]).any():
        return _share_among_callers
    table.prefill_shares.clear()
    return _share_whole if table.has_uncut[slots].any() else _share_budget


def _share_among_callers(table: SlotTable, slots: IdArray, *, num_free: int, max_chunk_tokens: int) -> IdArray:
    """Return the number of tokens for each of `slots`, which are in the order of admission, by their callers' shares.

    Ranges that are not cut stay whole.
    """
    num_open = _num_open(table, slots).tolist()
    fit = _fit(table, slots, num_open) if table.has_uncut[slots].any() else None
    counts = table.prefill_shares.give(
        table.callers[slots].tolist(),
        table.weights[slots].tolist(),
        num_open,
        num_free=num_free,
        max_chunk_tokens=max_chunk_tokens,
        fit=fit,
    )
    return np.array(counts, dtype=np.int64)


def _share_budget(table: SlotTable, slots: IdArray, *, num_free: int, max_chunk_tokens: int) -> IdArray:
    """Return the number of tokens for each of `slots`, which are in the order of admission and of one caller.

    Each slot first gets at most a chunk, then the slots get the rest of the budget in their order.
    """
    num_open = _num_open(table, slots)
    counts = _take_in_order(np.minimum(num_open, max_chunk_tokens), num_free)
    return counts + _take_in_order(num_open - counts, num_free - int(counts.sum()))


def _share_whole(table: SlotTable, slots: IdArray, *, num_free: int, max_chunk_tokens: int) -> IdArray:
    """Return the number of tokens for each of `slots`, by the rule of `_share_budget`, but cut no range in two.

    The first slot in order always gets tokens, because a range that no step can hold is not admitted.
    """
    num_open = _num_open(table, slots).tolist()
    fit = _fit(table, slots, num_open)
    counts = [0] * len(slots)
    for most in ([min(number, max_chunk_tokens) for number in num_open], num_open):
        for row in range(len(slots)):
            count = fit(row, counts[row], most[row] - counts[row], num_free)
            counts[row] += count
            num_free -= count
    return np.array(counts, dtype=np.int64)


def _fit(table: SlotTable, slots: IdArray, num_open: list[int]) -> FitChunk:
    """Return the function that says how many of the wanted tokens of a row a step takes, without cutting a range."""
    starts = table.num_computed[slots].tolist()
    uncut = [table.uncut_of(slot) for slot in slots.tolist()]

    def fit(row: int, num_had: int, num_wanted: int, num_free: int) -> int:
        most = min(num_open[row] - num_had, num_free)
        return fit_chunk(uncut[row], starts[row] + num_had, num_wanted, most)

    return fit


def fit_chunk(uncut: tuple[TokenRange, ...], start: int, num_wanted: int, most: int) -> int:
    """Return the number of tokens from `start` on that cuts no range, at most `num_wanted`, or more for a whole range.

    The number is never above `most`, and 0 where the range at `start` does not fit into `most`.
    """
    count = max(min(num_wanted, most), 0)
    for tokens in uncut:
        if tokens.start < start + count < tokens.end:
            if tokens.start > start:
                return tokens.start - start
            return tokens.end - start if count and tokens.end - start <= most else 0
    return count


def _num_open(table: SlotTable, slots: IdArray) -> IdArray:
    """Return for each slot the number of tokens that are not computed yet and have a place."""
    num_tokens = table.num_tokens[slots] - table.is_held[slots]
    bounds = np.minimum(num_tokens, table.num_places[slots])
    if table.num_with_media:
        bounds = np.minimum(bounds, table.ready_until[slots])
    num_open: IdArray = np.maximum(bounds - table.num_computed[slots], 0)
    return num_open


def _take_in_order(counts: IdArray, num_free: int) -> IdArray:
    """Give each slot its count while the budget lasts. The slot at which the budget runs out gets the rest."""
    num_before = np.cumsum(counts) - counts
    shares: IdArray = np.minimum(np.maximum(num_free - num_before, 0), counts)
    return shares
