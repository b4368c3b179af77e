"""Launches composed steps and collects them, at most two at a time.

To launch is to run the forward pass and the draws; to collect is to take the tokens on the host, end requests and
build the result.

With overlap (on a GPU) a step is launched before the step before is collected. The ids of a step then stay on the
device, where the next step finds them, and a reader brings them to the host. What the host learns too late is put
right: a row whose request had ended is vain, and a row whose last token was drawn again is vain and is computed again
with the right token. A step with a grammar waits for the tokens of the step before, behind its own forward pass
(rule 25).
"""

# R rows of the step, N rows that sample

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from textmill_shard.engine.beam_desk import BeamDesk
from textmill_shard.engine.entry_draft import EntryDraft
from textmill_shard.engine.launched_step import LaunchedStep
from textmill_shard.engine.memory_faults import NO_ROOM, is_out_of_memory
from textmill_shard.engine.rank_channel import RankChannel
from textmill_shard.engine.result_builder import build_result, rate_prompts
from textmill_shard.engine.result_outbox import ResultOutbox
from textmill_shard.engine.rewinder import Rewinder
from textmill_shard.engine.row_sampling import LaunchedDraw, RowSampler
from textmill_shard.engine.slot_ends import SlotEnds
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_collector import StepCollector
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.engine.token_reader import TokenReader
from textmill_shard.engine.upload import Upload, to_host
from textmill_shard.grammar.slots import MASK_TIMEOUT_S, GrammarSlots
from textmill_shard.model.forward_batch import ForwardOutput
from textmill_shard.model.system_memory import free_device_memory
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.plan import IdArray, SlotError
from textmill_shard.slots.step_composer import ComposedStep, select_rows, split_step

log = logging.getLogger(__name__)


class StepPipeline:
    """The steps between their launch and their result. The thread of the step loop alone calls the pipeline.

    Where another thread has the tokens of a step, it calls `wake`; the loop then calls `collect_read`.
    """

    def __init__(
        self,
        *,
        executor: StepExecutor,
        row_sampler: RowSampler,
        grammars: GrammarSlots,
        finish_rules: FinishRules,
        beams: BeamDesk,
        channel: RankChannel,
        status: ShardStatus,
        outbox: ResultOutbox,
        entry: EntryDraft,
        ends: SlotEnds,
        reader: TokenReader | None,
        wake: Callable[[], None],
    ) -> None:
        """With a `reader` steps overlap, and the executor is made for that."""
        assert (reader is None) == (executor.feed is None), "overlap concerns reader and executor"
        self._executor = executor
        self._row_sampler = row_sampler
        self._grammars = grammars
        self._beams = beams
        self._channel = channel
        self._status = status
        self._outbox = outbox
        self._entry = entry
        self._ends = ends
        self._reader = reader
        self._wake = wake
        self._in_flight: list[LaunchedStep] = []  # launched and not collected, at most two
        self._starved_slots: list[int] = []  # to be told with the next result, because their step had no row
        self._rewinder = Rewinder(executor, row_sampler)
        self._collector = StepCollector(
            executor=executor,
            row_sampler=row_sampler,
            finish_rules=finish_rules,
            beams=beams,
            channel=channel,
            outbox=outbox,
            ends=ends,
            rewinder=self._rewinder,
            has_overlap=reader is not None,
        )

    @property
    def is_empty(self) -> bool:
        """Whether each launched step has been collected."""
        return not self._in_flight

    @property
    def is_full(self) -> bool:
        """Whether no step may be launched before one is collected. The tokens of the first one will wake the loop."""
        return len(self._in_flight) > 1

    def begin_epoch(self) -> None:
        """Forget the steps in flight, whose slots are free."""
        self._in_flight.clear()
        self._rewinder.clear()
        self._starved_slots.clear()

    def close(self) -> None:
        """End the thread that reads tokens."""
        if self._reader is not None:
            self._reader.close()

    def run(self, step: ComposedStep, composed_ns: int) -> None:
        """Run a step, and collect it where steps do not overlap.

        A step that runs out of memory runs again in halves, down to the row that has no room alone. Raises the
        exceptions of the model and of the device.
        """
        if self._starved_slots:
            step = replace(step, starved_slots=np.union1d(self.take_starved(), step.starved_slots))
        self._run(step, composed_ns)

    def collect_read(self) -> None:
        """Collect the first step if its tokens have reached the host.

        A step that a grammar waited for, or of an epoch that is over, has been collected or forgotten before.
        """
        if self._in_flight and self._in_flight[0].is_read:
            self._collect_first()
            self._entry.add_rewinds(self._rewinder.apply())

    def drain(self) -> None:
        """Collect all steps in flight."""
        while self._in_flight:
            self._collect_first()
        self._entry.add_rewinds(self._rewinder.apply())

    def add_starved(self, slots: IdArray) -> None:
        """Note slots that had no block in a step without rows, or in one that was not launched."""
        self._starved_slots += slots.tolist()

    @property
    def has_starved(self) -> bool:
        """Whether a noted slot was not taken yet."""
        return bool(self._starved_slots)

    def take_starved(self) -> IdArray:
        """Return the noted slots that are still starved, once."""
        table = self._executor.table
        slots = [slot for slot in dict.fromkeys(self._starved_slots) if table.was_starved[slot]]
        self._starved_slots.clear()
        return np.array(slots, dtype=np.int64)

    def _run(self, step: ComposedStep, composed_ns: int) -> None:
        if not self._in_flight:
            self._status.begin_step()
        seats_R = self._executor.table.order[step.slots_R]
        if self._launch(step, composed_ns):
            if self._reader is None:
                self._collect_first()
            return
        self._status.report_memory_fault()
        self.drain()
        self._grammars.finish_masks()
        free_device_memory(self._executor.device)
        log.warning("a step ran out of memory", extra={"num_rows": len(step.slots_R), "num_tokens": step.num_tokens})
        if self._reader is not None:
            step = self._still_seated(step, seats_R)
            if step.is_empty:
                return
        if len(step.slots_R) == 1:
            self._fail_alone(step)
            return
        for half in split_step(step):
            self._run(half, time.monotonic_ns())
            self.drain()

    def _still_seated(self, step: ComposedStep, seats_R: IdArray) -> ComposedStep:
        """Return the rows of a step that was not launched, without those whose requests have ended since."""
        table = self._executor.table
        rows = np.flatnonzero(table.is_occupied[step.slots_R] & (table.order[step.slots_R] == seats_R))
        if not len(rows):
            self.add_starved(step.starved_slots)
        return select_rows(step, rows, starved_slots=step.starved_slots)

    def _fail_alone(self, step: ComposedStep) -> None:
        """End the request of the one row of a step, for which the memory has no room."""
        [slot] = step.slots_R.tolist()
        error = SlotError(slot, int(self._executor.table.request_ids[slot]), NO_ROOM.code, NO_ROOM.message)
        number, plan_applied = self._outbox.count_step(), self._executor.plan_applied
        self._outbox.hold(build_result(step=number, plan_applied=plan_applied, composed=step, errors={slot: error}))
        self._ends.end([slot], step=number)
        self._status.finish_step(number, plan_applied)

    def _launch(self, step: ComposedStep, composed_ns: int) -> bool:
        """Launch a composed step. Returns False when memory ran out and the step may run again."""
        executor, sampler, table = self._executor, self._row_sampler, self._executor.table
        forward_ns = time.monotonic_ns()
        slots_N = step.slots_R if step.is_decode else step.slots_R[step.samples_R]
        upload = Upload(executor.device)
        sampler.prepare(slots_N, upload)
        waits_for_tokens = bool(self._in_flight) and sampler.needs_masks  # rule 25
        if not waits_for_tokens:
            sampler.begin_masks(table, slots_N)
        began = None if self._reader is None else self._reader.mark()
        batch = executor.build(step, upload)
        self._outbox.send_held()
        try:
            output = executor.forward(step, batch)
        except Exception as error:
            # With other ranks the calls of this rank and theirs no longer fit.
            if self._channel.needs_plans or not is_out_of_memory(error):
                raise
            return False
        launched_step = LaunchedStep(
            number=self._outbox.count_step(),
            plan_applied=executor.plan_applied,
            step=step,
            composed_ns=composed_ns,
            device_ns=time.monotonic_ns() - forward_ns,
            num_tokens_N=table.num_tokens[slots_N],
            seats_R=table.order[step.slots_R],
            starved_seats=table.order[step.starved_slots],
            began=began,
        )
        self._in_flight.append(launched_step)
        # Every rank makes the calls of prompt log-probabilities here, behind the forward pass of the step.
        stretches = executor.prompt_stretches(step, output.hidden_TD)
        if stretches:
            launched_step.pieces, launched_step.prompt_errors = rate_prompts(
                stretches, executor.rate, is_alone=not self._channel.needs_plans
            )
        if waits_for_tokens:
            while len(self._in_flight) > 1:
                self._collect_first()
            sampler.begin_masks(table, slots_N)
            self._outbox.send_held()
        if len(slots_N):
            self._draw(launched_step, slots_N, output)
        self._begin_reading(launched_step)
        self._entry.add_rewinds(self._rewinder.apply())
        return True

    def _draw(self, launched_step: LaunchedStep, slots_N: IdArray, output: ForwardOutput) -> None:
        """Launch the draws of a step."""
        if self._grammars.has_masks:
            self._status.progress.expect(MASK_TIMEOUT_S)
        launched_step.draw = self._row_sampler.launch(self._executor.table, slots_N, output)
        if self._beams.awaits_prompts:
            launched_step.first_logits = self._beams.set_apart(slots_N, output)

    def _begin_reading(self, launched_step: LaunchedStep) -> None:
        """Feed the drawn ids to the next step, and let the reader bring them to the host (overlap)."""
        reader, feed, draw = self._reader, self._executor.feed, launched_step.draw
        if reader is None or feed is None:
            return
        assert launched_step.began is not None
        if draw is None:
            launched_step.reading = reader.begin([], launched_step.began, self._wake)
            return
        tensors = draw.tensors
        if draw.may_look and not self._executor.can_rewind:
            # The rows of this model keep states that no step can take back, so the tokens are settled first.
            arrays = to_host(*tensors) if tensors else []
            drawn_rows = self._row_sampler.finish(draw, arrays, is_awaited=True)
            draw = LaunchedDraw(None, draw.tokens_N, draw.rows, {}, replace(drawn_rows, redrawn_N=None))
            launched_step.draw, tensors = draw, []
        assert draw.tokens_N is not None
        self._channel.share_tensor(draw.tokens_N)
        feed.put(draw.tokens_N)
        self._row_sampler.note(draw)
        launched_step.reading = reader.begin(tensors, launched_step.began, self._wake)

    def _collect_first(self) -> None:
        """Collect the step that was launched first of those in flight."""
        launched_step = self._in_flight[0]
        drawn_rows = self._collector.read(launched_step)
        del self._in_flight[0]
        self._collector.collect(launched_step, drawn_rows, self._in_flight)
        self._status.finish_step(launched_step.number, launched_step.plan_applied)
        self._collector.note_end()
        if self._in_flight:
            self._status.begin_step()
