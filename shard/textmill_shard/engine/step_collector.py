"""Takes the tokens of a launched step on the host, ends requests, and builds the result of the step."""

# N rows that sample

import time
from collections.abc import Sequence

import numpy as np

from textmill_shard.engine.beam_desk import BeamDesk, BeamNews
from textmill_shard.engine.launched_step import CountedRows, LaunchedStep, all_rows, seated_rows
from textmill_shard.engine.rank_channel import RankChannel
from textmill_shard.engine.result_builder import build_result
from textmill_shard.engine.result_outbox import ResultOutbox
from textmill_shard.engine.rewinder import Rewinder
from textmill_shard.engine.row_sampling import DrawnRows, RowSampler
from textmill_shard.engine.slot_ends import SlotEnds
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.engine.upload import to_host
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.plan import FLAG_FINISHED, NO_IDS, IdArray, SlotError


class StepCollector:
    """Collects one step after the other, in the order of their launches. The thread of the step loop alone calls it."""

    def __init__(
        self,
        *,
        executor: StepExecutor,
        row_sampler: RowSampler,
        finish_rules: FinishRules,
        beams: BeamDesk,
        channel: RankChannel,
        outbox: ResultOutbox,
        ends: SlotEnds,
        rewinder: Rewinder,
        has_overlap: bool,
    ) -> None:
        self._executor = executor
        self._row_sampler = row_sampler
        self._finish_rules = finish_rules
        self._beams = beams
        self._channel = channel
        self._outbox = outbox
        self._ends = ends
        self._rewinder = rewinder
        self._has_overlap = has_overlap
        self._collected_ns = 0  # when the last step was collected

    def read(self, launched_step: LaunchedStep) -> DrawnRows | None:
        """Return the tokens of a step on the host, which waits for the device. None: no row samples."""
        draw = launched_step.draw
        if launched_step.reading is not None:
            step_read = launched_step.reading.result()
            launched_step.device_ns = step_read.device_ns
            return None if draw is None else self._row_sampler.finish(draw, step_read.arrays)
        if draw is None:
            return None
        tensors = draw.tensors
        drawn_rows = self._row_sampler.finish(draw, to_host(*tensors) if tensors else [], is_awaited=True)
        self._row_sampler.note(draw)
        self._channel.share_tokens(drawn_rows.tokens_N)
        return drawn_rows

    def collect(
        self, launched_step: LaunchedStep, drawn_rows: DrawnRows | None, later_steps: Sequence[LaunchedStep]
    ) -> None:
        """Take in the tokens of a step, hold its result, and free the slots whose requests ended.

        `later_steps` were launched behind the step, with its tokens.
        """
        rows = self._counted_rows(launched_step, drawn_rows)
        step, drawn_rows = rows.step, rows.drawn_rows
        slots_N = step.slots_R[step.samples_R]
        errors = {error.slot: error for error in rows.prompt_errors}
        flags_N: IdArray = NO_IDS
        ended_slots: list[int] = []
        begun: dict[int, BeamNews] = {}
        if drawn_rows is not None:
            if launched_step.first_logits:
                drawn_rows, begun = self._beams.begin_all(launched_step.first_logits, slots_N, drawn_rows)
            errors |= self._faults(slots_N, drawn_rows)
            self._executor.fill(slots_N, rows.num_tokens_N, drawn_rows.tokens_N)
            flags_N = self._finish_rules.flags(self._executor.table, slots_N, rows.num_tokens_N, drawn_rows.tokens_N)
            for row, news in begun.items():
                flags_N[row] = news.flags[0]
            is_fine_N = ~np.isin(slots_N, list(errors)) if errors else np.ones(len(slots_N), dtype=bool)
            self._row_sampler.consume(slots_N[is_fine_N], drawn_rows.tokens_N[is_fine_N])
            ends_N = is_fine_N & (flags_N & FLAG_FINISHED > 0)
            ended_slots = slots_N[ends_N].tolist()
            if drawn_rows.redrawn_N is not None and self._has_overlap:
                goes_on_N = drawn_rows.redrawn_N & is_fine_N & ~ends_N
                self._rewinder.note(slots_N[goes_on_N], drawn_rows.tokens_N[goes_on_N], later_steps)
        now_ns = time.monotonic_ns()
        result = build_result(
            step=launched_step.number,
            plan_applied=launched_step.plan_applied,
            composed=step,
            drawn_rows=drawn_rows,
            flags_N=flags_N,
            errors=errors,
            prompt_logprobs=rows.pieces,
            found=tuple(found for news in begun.values() for found in news.found),
            step_ns=now_ns - max(launched_step.composed_ns, self._collected_ns),
            device_ns=launched_step.device_ns,
        )
        self._outbox.hold(result)
        self._ends.end([*errors, *ended_slots], step=launched_step.number)

    def note_end(self) -> None:
        """Note that a step has been collected, from when the time of the next one counts."""
        self._collected_ns = time.monotonic_ns()

    def _counted_rows(self, launched_step: LaunchedStep, drawn_rows: DrawnRows | None) -> CountedRows:
        if not self._has_overlap:
            return all_rows(launched_step, drawn_rows)
        return seated_rows(launched_step, drawn_rows, self._executor.table)

    def _faults(self, slots_N: IdArray, drawn_rows: DrawnRows) -> dict[int, SlotError]:
        """Return the errors of rows that could not be drawn, by slot."""
        request_ids = self._executor.table.request_ids
        faulty = {int(slots_N[row]): fault for row, fault in drawn_rows.faults.items()}
        return {
            slot: SlotError(slot, int(request_ids[slot]), fault.code, fault.message) for slot, fault in faulty.items()
        }
