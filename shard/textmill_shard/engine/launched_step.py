"""A step between its launch and its result, and which of its rows still count when the host has the tokens."""

# R rows of the step, N rows that sample

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch

from textmill_shard.engine.row_sampling import DrawnRows, LaunchedDraw
from textmill_shard.engine.token_reader import Mark, StepRead
from textmill_shard.slots.plan import IdArray, SlotError, SlotPromptLogprobs
from textmill_shard.slots.slot_table import SlotTable
from textmill_shard.slots.step_composer import ComposedStep, select_rows


@dataclass(slots=True)
class LaunchedStep:
    """A step that was launched, and what the host needs to collect the step.

    `composed_ns` is a time of the monotonic clock, and `device_ns` is a duration. A request that has left its slot
    since the launch is told by `seats_R`, which holds `SlotTable.order` of the rows.
    """

    number: int
    plan_applied: int
    step: ComposedStep
    composed_ns: int
    device_ns: int
    num_tokens_N: IdArray  # of each slot that samples, up to the token of this step
    seats_R: IdArray
    starved_seats: IdArray
    began: Mark | None  # None without overlap
    draw: LaunchedDraw | None = None  # None where no row samples, and until the draws are launched
    reading: Future[StepRead] | None = None  # with overlap
    vain_slots: tuple[int, ...] = ()  # slots whose row counts for nothing, because its last token was drawn again
    pieces: Sequence[SlotPromptLogprobs] = ()
    prompt_errors: Sequence[SlotError] = ()
    first_logits: Mapping[int, torch.Tensor] = field(default_factory=dict)  # [V] float32 of slots that begin a search

    @property
    def is_read(self) -> bool:
        """Whether the tokens of an overlapped step have reached the host."""
        return self.reading is not None and self.reading.done()


@dataclass(frozen=True, slots=True)
class CountedRows:
    """The rows of a launched step that count, with their parts of what the step has brought."""

    step: ComposedStep
    num_tokens_N: IdArray
    drawn_rows: DrawnRows | None
    pieces: Sequence[SlotPromptLogprobs]
    prompt_errors: Sequence[SlotError]


def all_rows(launched_step: LaunchedStep, drawn_rows: DrawnRows | None) -> CountedRows:
    """Return all rows, as they count without overlap."""
    return CountedRows(
        launched_step.step,
        launched_step.num_tokens_N,
        drawn_rows,
        launched_step.pieces,
        launched_step.prompt_errors,
    )


def seated_rows(launched_step: LaunchedStep, drawn_rows: DrawnRows | None, table: SlotTable) -> CountedRows:
    """Return the rows whose requests still have their slots, and whose inputs were right (rules 6 and 7)."""
    step = launched_step.step
    is_seated_R = table.is_occupied[step.slots_R] & (table.order[step.slots_R] == launched_step.seats_R)
    if launched_step.vain_slots:
        is_seated_R &= ~np.isin(step.slots_R, launched_step.vain_slots)
    is_starved = table.order[step.starved_slots] == launched_step.starved_seats
    if is_seated_R.all() and is_starved.all():
        return all_rows(launched_step, drawn_rows)
    rows_N = np.flatnonzero(is_seated_R[step.samples_R])
    seated = select_rows(step, np.flatnonzero(is_seated_R), starved_slots=step.starved_slots[is_starved])
    slots = frozenset(seated.slots_R.tolist())
    return CountedRows(
        step=seated,
        num_tokens_N=launched_step.num_tokens_N[rows_N],
        drawn_rows=None if drawn_rows is None else drawn_rows.select(rows_N),
        pieces=[piece for piece in launched_step.pieces if piece.slot in slots],
        prompt_errors=[error for error in launched_step.prompt_errors if error.slot in slots],
    )
