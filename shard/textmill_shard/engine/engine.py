"""The step loop of rank 0, in a thread of its own. The loop takes plans in and hands out one result per step.

In each turn the loop takes in the events that arrived, tells the other ranks, composes a step, launches and collects
it. To launch is to run the forward pass and the draws; to collect is to take the tokens on the host, end requests and
build the result.

With overlap (on a GPU) the loop launches a step before it collects the step before. The ids of a step then stay on the
device, where the next step finds them, and a reader brings them to the host. What the host learns too late is put
right: a row whose request had ended is vain, and a row whose last token was drawn again is vain and is computed again
with the right token. A step with a grammar waits for the tokens of the step before, behind its own forward pass
(rule 25).
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from queue import Empty, SimpleQueue

import numpy as np

from textmill_shard.engine.adapter_desk import AdapterDesk, LoadedAdapter, LoadWanted, UnloadWanted
from textmill_shard.engine.adapter_reader import ReadOutcome
from textmill_shard.engine.apart_pass import ApartPass
from textmill_shard.engine.beam_desk import BeamDesk, BeamNews
from textmill_shard.engine.entry_draft import EntryDraft
from textmill_shard.engine.events import (
    AdapterEvent,
    AdapterRead,
    Arrival,
    EngineEvent,
    GrammarCompiled,
    ItemComputed,
    PlanArrived,
    SessionClosed,
    SessionOpened,
    StepArrived,
    Stop,
)
from textmill_shard.engine.launched_step import LaunchedStep, all_rows, seated_rows
from textmill_shard.engine.media_desk import NOTHING, MediaDesk, MediaTurn
from textmill_shard.engine.memory_faults import NO_ROOM, free_device_memory, is_out_of_memory
from textmill_shard.engine.rank_channel import RankChannel
from textmill_shard.engine.result_builder import build_result, rate_prompts
from textmill_shard.engine.rewinder import Rewinder
from textmill_shard.engine.row_sampling import DrawnRows, LaunchedDraw, RowSampler
from textmill_shard.engine.session import EndReason, Session
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.engine.token_reader import TokenReader
from textmill_shard.engine.upload import Upload, to_host
from textmill_shard.grammar.slots import MASK_TIMEOUT_S, GrammarSlots
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.plan import (
    FLAG_FINISHED,
    NO_IDS,
    IdArray,
    Plan,
    SlotError,
    StepResult,
)
from textmill_shard.slots.plan_check import PlanRejected
from textmill_shard.slots.step_composer import ComposedStep, select_rows, split_step

log = logging.getLogger(__name__)

TOWER_LIMIT_S = 30.0  # in which the tower of a GPU computes an image
IDLE_TURN_S = 0.5  # an idle loop wakes as often, to look at the lease and to send the other ranks a sign of life


class Engine:
    """Owns the epoch and the slots of rank 0.

    Any thread may call `open_session`, `close_session`, `submit_plan`, `load_adapter`, `unload_adapter` and `stop`.
    Their events take effect in the thread of `run`, which runs all other code but the functions `_on_...`. Any thread
    may use `media.store`.
    """

    def __init__(
        self,
        *,
        executor: StepExecutor,
        row_sampler: RowSampler,
        grammars: GrammarSlots,
        finish_rules: FinishRules,
        channel: RankChannel,
        adapters: AdapterDesk,
        status: ShardStatus,
        lease_s: float,
        media: MediaDesk | None = None,
        clock: Callable[[], float] = time.monotonic,
        reader: TokenReader | None = None,
    ) -> None:
        """`media` is None for a model of text. With a `reader` steps overlap, and the executor is made for that."""
        assert (reader is None) == (executor.feed is None), "overlap concerns reader and executor"
        self.media = media
        self._executor = executor
        self._row_sampler = row_sampler
        self._grammars = grammars
        self._finish_rules = finish_rules
        self._channel = channel
        self._adapters = adapters
        self._beams = BeamDesk(executor, finish_rules, clock, self._tell_apart if channel.needs_plans else None)
        self._status = status
        self._lease_s = lease_s
        self._clock = clock
        self._inbox: SimpleQueue[EngineEvent] = SimpleQueue()
        self._lock = threading.Lock()  # guards `_live` and `_epoch`
        self._live: Session | None = None  # of the open stream, during which a second stream is refused
        self._epoch = 0
        self._session: Session | None = None  # the slots belong to its epoch
        self._step_number = 0
        self._is_plan_unacknowledged = False
        self._reader = reader
        self._in_flight: list[LaunchedStep] = []  # launched and not collected, at most two
        self._rewinder = Rewinder(executor, row_sampler)
        self._collected_ns = 0  # when the last step was collected
        self._starved_slots: list[int] = []  # to be told with the next result, because their step had no row
        self._held_result: StepResult | None = None  # of the last step, until the writer of the stream gets it
        self._entry = EntryDraft()

    # ------------------------------------------------------------ other threads

    def open_session(self) -> Session | None:
        """Begin an epoch for a new stream. Returns None while another stream is open (rule 21)."""
        with self._lock:
            if self._live is not None:
                return None
            self._epoch += 1
            session = self._live = Session(self._epoch, self._clock)
            if self.media is not None:
                self.media.store.end_leases()  # of the router before; the new one has heard no Hello yet
        self._inbox.put(SessionOpened(session))
        return session

    def close_session(self, session: Session, reason: EndReason, message: str) -> None:
        """End the epoch of `session` at the next step boundary, because its stream is over.

        A second call for the session does nothing.
        """
        self._release(session)
        self._inbox.put(SessionClosed(session, reason, message))

    def submit_plan(self, session: Session, plan: Plan | PlanRejected, data: bytes) -> None:
        """Hand over a plan, or the reason why nobody could read the plan.

        `data` is the serialised plan, and may be empty where `needs_plan_bytes` is False.
        """
        self._inbox.put(PlanArrived(session, plan, data))

    def load_adapter(self, folder: str, *, expected_digest: bytes) -> Future[LoadedAdapter]:
        """Let every rank read an adapter. The future gets AdapterRefused with the reason, or is cancelled by a stop."""
        wanted = LoadWanted(folder, expected_digest)
        self._inbox.put(wanted)
        return wanted.answer

    def unload_adapter(self, digest: bytes) -> Future[None]:
        """Free an adapter on every rank. The future gets AdapterHeld or UnknownAdapter, or is cancelled by a stop."""
        wanted = UnloadWanted(digest)
        self._inbox.put(wanted)
        return wanted.answer

    def stop(self) -> None:
        """Let `run` return at the next step boundary."""
        self._inbox.put(Stop())

    def _on_grammar_compiled(self) -> None:
        self._inbox.put(GrammarCompiled())

    def _on_item_computed(self) -> None:
        self._inbox.put(ItemComputed())

    def _on_adapter_read(self, outcomes: Sequence[ReadOutcome]) -> None:
        self._inbox.put(AdapterRead(outcomes))

    def _on_step_read(self) -> None:
        self._inbox.put(StepArrived())

    @property
    def needs_plan_bytes(self) -> bool:
        """Whether `submit_plan` needs the serialised plan, because other ranks follow."""
        return self._channel.needs_plans

    # ------------------------------------------------------------ the loop

    def run(self) -> None:
        """Run steps until `stop`.

        Raises the exceptions of the model and of the device, after the end of the stream was sent with their text.
        """
        try:
            is_runnable = False
            while self._take_events(wait=not is_runnable):
                self._watch_lease()
                is_runnable = self._turn()
        except Exception as error:
            # This process ends now, and the other ranks see their connection to it close.
            self._end_epoch(EndReason.FAILED, f"the step loop broke: {type(error).__name__}: {error}")
            raise
        finally:
            self._adapters.close()
            if self.media is not None:
                self.media.close()
        if self._session is not None:
            self._drain()
        self._end_epoch(EndReason.STOPPING, "the shard is stopping")
        self._send_entry(is_stop=True)
        if self._reader is not None:
            self._reader.close()

    def _take_events(self, *, wait: bool) -> bool:
        """Handle all events that arrived. `wait` waits for the first event. Returns False after a Stop."""
        if wait and not self._in_flight:
            self._status.progress.expect(IDLE_TURN_S)
        try:
            event = self._inbox.get(timeout=min(IDLE_TURN_S, self._lease_s / 4)) if wait else self._inbox.get_nowait()
            while not isinstance(event, Stop):
                self._handle(event)
                event = self._inbox.get_nowait()
        except Empty:
            return True
        return False

    def _handle(self, event: Arrival) -> None:
        if isinstance(event, GrammarCompiled | ItemComputed):
            return  # the event has woken the loop, and `_turn` asks for what is ready
        if isinstance(event, StepArrived):
            if self._in_flight and self._in_flight[0].is_read:
                self._collect_first()
                self._entry.add_rewinds(self._rewinder.apply())
            return  # a step that a grammar waited for, or of an epoch that is over, is collected or forgotten
        if isinstance(event, AdapterEvent):
            self._handle_adapter(event)
            return
        session = event.session
        if isinstance(event, SessionOpened):
            self._begin_epoch(session)
            log.info("epoch begins", extra={"epoch": session.epoch})
        elif session is not self._session:
            return  # the event belongs to a stream that is over
        elif isinstance(event, SessionClosed):
            self._end_epoch(event.reason, event.message)
        else:
            self._take_plan(session, event)

    def _handle_adapter(self, event: AdapterEvent) -> None:
        if isinstance(event, LoadWanted):
            self._adapters.load(event, self._on_adapter_read)
        elif isinstance(event, UnloadWanted):
            self._adapters.unload(event)
        else:
            self._adapters.settle(event.outcomes, self._on_adapter_read)

    def _begin_epoch(self, session: Session) -> None:
        self._session = session
        self._executor.begin_epoch()
        self._grammars.reset()
        if self.media is not None:
            self.media.reset()
        self._beams.clear()
        self._status.begin_epoch()
        self._step_number = 0
        self._held_result = None
        self._is_plan_unacknowledged = False
        self._in_flight.clear()
        self._rewinder.clear()
        self._starved_slots.clear()
        self._entry.begin_epoch()

    def _end_epoch(self, reason: EndReason, message: str) -> None:
        """Free all slots and end the stream. The weights stay, and the loop waits for the next stream (rule 21)."""
        session = self._session
        if session is None:
            return
        self._send_held()
        log.info("epoch ends", extra={"epoch": session.epoch, "reason": reason.value, "detail": message})
        session.finish(reason, message)
        self._begin_epoch(session)
        self._session = None
        self._release(session)

    def _release(self, session: Session) -> None:
        with self._lock:
            if self._live is session:
                self._live = None

    def _take_plan(self, session: Session, event: PlanArrived) -> None:
        """Apply a plan whole, or reject the whole plan and end the epoch (rules 1 and 20)."""
        try:
            if isinstance(event.plan, PlanRejected):
                raise event.plan
            self._executor.check(event.plan)
        except PlanRejected as error:
            self._drain()
            self._send_held()
            session.send(error.rejection)
            self._end_epoch(EndReason.PLAN_REJECTED, str(error))
            return
        self._executor.apply(event.plan)
        if log.isEnabledFor(logging.DEBUG):
            _log_seats(event.plan)
        for admit in event.plan.admits:
            self._row_sampler.admit(admit)
            self._beams.admit(admit)
            if admit.grammar is not None:
                self._grammars.begin(admit, self._on_grammar_compiled)
            if self.media is not None and admit.media and admit.slot not in self._executor.media_faults:
                self.media.admit(admit)
        self._status.report_plan(event.plan.number)
        self._is_plan_unacknowledged = True
        if self._channel.needs_plans:
            self._entry.add_plan(event.data)

    def _watch_lease(self) -> None:
        session = self._session
        if session is not None and session.silence_s() > self._lease_s:
            self._end_epoch(EndReason.LEASE, f"nothing heard from the router for {self._lease_s:g} s")

    def _turn(self) -> bool:
        """Compose and run one step. Returns False when no row can run; the loop then waits for an event (rule 2)."""
        if len(self._in_flight) > 1:
            self._send_held()
            return False  # the tokens of the first of these steps wake the loop
        composed_ns = time.monotonic_ns()
        released_slots = self._grammars.take_compiled(self._executor.table)
        self._executor.release(released_slots)
        media_turn = self._turn_media()
        if media_turn.faults:
            self._drain()  # the result that tells of the faults comes behind those of the steps under way
        self._send_entry(released_slots=released_slots, ready=media_turn.ready)
        step = self._executor.compose()
        session = self._session
        if session is None:
            return False
        if media_turn.faults:
            self._fail_media(media_turn.faults, session)
        if step.is_empty:
            self._send_held()
            self._starved_slots += step.starved_slots.tolist()
            # The acknowledgement of a plan comes behind the results of the steps that were composed before the plan.
            if not self._in_flight and (self._is_plan_unacknowledged or self._starved_slots):
                self._is_plan_unacknowledged = False
                step = replace(step, starved_slots=self._take_starved())
                session.send(build_result(step=0, plan_applied=self._executor.plan_applied, composed=step))
        else:
            if self._starved_slots:
                step = replace(step, starved_slots=np.union1d(self._take_starved(), step.starved_slots))
            self._run_step(step, composed_ns)
        if not self._beams.is_searching:
            return not step.is_empty
        self._search()
        return True

    def _search(self) -> None:
        """Let each search by beams go on by one token, in a step of their own, which overlaps with no other."""
        self._drain()
        if not self._beams.is_searching:
            return
        self._status.begin_step()
        begun_ns = time.monotonic_ns()
        self._send_held()
        news = self._beams.advance()
        self._step_number += 1
        self._is_plan_unacknowledged = False
        self._held_result = news.as_result(
            step=self._step_number,
            plan_applied=self._executor.plan_applied,
            duration_ns=time.monotonic_ns() - begun_ns,
        )
        self._end_slots(news.ended_slots)
        self._status.finish_step(self._step_number, self._executor.plan_applied)

    def _turn_media(self) -> MediaTurn:
        """Let slots go on whose rows are ready, and return them, with the slots whose images have failed."""
        if self.media is None:
            return NOTHING
        if self.media.runs_tower_here:
            self._status.progress.expect(TOWER_LIMIT_S)
        executor = self._executor
        turn = self.media.turn(executor.table, reach=executor.max_step_tokens, wake=self._on_item_computed)
        executor.set_ready(turn.ready.keys(), turn.ready.values())
        return MediaTurn(turn.ready, (*turn.faults, *executor.take_media_faults())) if executor.media_faults else turn

    def _fail_media(self, faults: Sequence[SlotError], session: Session) -> None:
        """End the requests of slots whose images have failed, in a result of its own.

        Such a slot is in no step, because it computes no token of the image. The entry that tells the other ranks of
        its admission has been sent, and the next one tells them of its end.
        """
        self._send_held()
        self._is_plan_unacknowledged = False
        session.send(StepResult(step=0, plan_applied=self._executor.plan_applied, errors=tuple(faults)))
        self._end_slots([fault.slot for fault in faults])

    def _take_starved(self) -> IdArray:
        """Return the starved slots that no result has named yet, and that are still starved."""
        table = self._executor.table
        slots = [slot for slot in dict.fromkeys(self._starved_slots) if table.was_starved[slot]]
        self._starved_slots.clear()
        return np.array(slots, dtype=np.int64)

    def _run_step(self, step: ComposedStep, composed_ns: int) -> None:
        """Run a step. A step that runs out of memory runs again in halves, down to the row that has no room alone."""
        if not self._in_flight:
            self._status.begin_step()
        seats_R = self._executor.table.order[step.slots_R]
        if self._launch(step, composed_ns):
            if self._reader is None:
                self._collect_first()
            return
        self._status.report_memory_fault()
        self._drain()
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
            self._run_step(half, time.monotonic_ns())
            self._drain()

    def _drain(self) -> None:
        """Collect all steps in flight."""
        while self._in_flight:
            self._collect_first()
        self._entry.add_rewinds(self._rewinder.apply())

    def _still_seated(self, step: ComposedStep, seats_R: IdArray) -> ComposedStep:
        """Return the rows of a step that was not launched, without those whose requests have ended since."""
        table = self._executor.table
        rows = np.flatnonzero(table.is_occupied[step.slots_R] & (table.order[step.slots_R] == seats_R))
        if not len(rows):
            self._starved_slots += step.starved_slots.tolist()
        return select_rows(step, rows, starved_slots=step.starved_slots)

    def _fail_alone(self, step: ComposedStep) -> None:
        """End the request of the one row of a step, for which the memory has no room."""
        [slot] = step.slots_R.tolist()
        error = SlotError(slot, int(self._executor.table.request_ids[slot]), NO_ROOM.code, NO_ROOM.message)
        self._send_held()
        self._is_plan_unacknowledged = False
        self._step_number += 1
        plan_applied = self._executor.plan_applied
        self._held_result = build_result(
            step=self._step_number, plan_applied=plan_applied, composed=step, errors={slot: error}
        )
        self._end_slots([slot])
        self._status.finish_step(self._step_number, plan_applied)

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
        self._send_held()
        try:
            output = executor.forward(step, batch)
        except Exception as error:
            # With other ranks the calls of this rank and theirs no longer fit.
            if self._channel.needs_plans or not is_out_of_memory(error):
                raise
            return False
        self._is_plan_unacknowledged = False
        self._step_number += 1
        launched_step = LaunchedStep(
            number=self._step_number,
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
                stretches, executor.project, is_alone=not self._channel.needs_plans
            )
        if waits_for_tokens:
            while len(self._in_flight) > 1:
                self._collect_first()
            sampler.begin_masks(table, slots_N)
            self._send_held()
        if len(slots_N):
            if self._grammars.has_masks:
                self._status.progress.expect(MASK_TIMEOUT_S)
            launched_step.draw = sampler.launch(table, slots_N, output)
            if self._beams.awaits_prompts:
                launched_step.first_logits = self._beams.set_apart(slots_N, output)
        self._begin_reading(launched_step)
        self._entry.add_rewinds(self._rewinder.apply())
        return True

    def _begin_reading(self, launched_step: LaunchedStep) -> None:
        """Feed the drawn ids to the next step, and let the reader bring them to the host (overlap)."""
        reader, feed, draw = self._reader, self._executor.feed, launched_step.draw
        if reader is None or feed is None:
            return
        assert launched_step.began is not None
        if draw is None:
            launched_step.reading = reader.begin([], launched_step.began, self._on_step_read)
            return
        tensors = draw.tensors
        if draw.may_draw_again and not self._executor.can_rewind:
            # The rows of this model keep states that no step can take back, so the tokens are settled first.
            drawn_rows = self._row_sampler.finish(draw, to_host(*tensors))
            draw = LaunchedDraw(None, draw.tokens_N, draw.rows, {}, replace(drawn_rows, redrawn_N=None))
            launched_step.draw, tensors = draw, []
        assert draw.tokens_N is not None
        self._channel.share_tensor(draw.tokens_N)
        feed.put(draw.tokens_N)
        self._row_sampler.note(draw)
        launched_step.reading = reader.begin(tensors, launched_step.began, self._on_step_read)

    def _collect_first(self) -> None:
        """Collect the step that was launched first of those in flight."""
        session = self._session
        assert session is not None, "the steps of an epoch are forgotten with its session"
        launched_step = self._in_flight[0]
        drawn_rows = self._read(launched_step)
        del self._in_flight[0]
        self._collect(launched_step, drawn_rows)
        self._status.finish_step(launched_step.number, launched_step.plan_applied)
        self._collected_ns = time.monotonic_ns()
        if self._in_flight:
            self._status.begin_step()

    def _read(self, launched_step: LaunchedStep) -> DrawnRows | None:
        """Return the tokens of a step on the host, which waits for the device. None: no row samples."""
        draw = launched_step.draw
        if launched_step.reading is not None:
            step_read = launched_step.reading.result()
            launched_step.device_ns = step_read.device_ns
            return None if draw is None else self._row_sampler.finish(draw, step_read.arrays)
        if draw is None:
            return None
        tensors = draw.tensors
        drawn_rows = self._row_sampler.finish(draw, to_host(*tensors) if tensors else [])
        self._row_sampler.note(draw)
        self._channel.share_tokens(drawn_rows.tokens_N)
        return drawn_rows

    def _collect(self, launched_step: LaunchedStep, drawn_rows: DrawnRows | None) -> None:
        """Take in the tokens of a step, build the result, and free the slots whose requests ended."""
        executor, table = self._executor, self._executor.table
        if self._reader is None:
            rows = all_rows(launched_step, drawn_rows)
        else:
            rows = seated_rows(launched_step, drawn_rows, table)
        step, drawn_rows = rows.step, rows.drawn_rows
        slots_N = step.slots_R[step.samples_R]
        flags_N: IdArray = NO_IDS
        ended_slots: list[int] = []
        row_errors: list[SlotError] = []
        begun: dict[int, BeamNews] = {}
        if drawn_rows is not None:
            if launched_step.first_logits:
                drawn_rows, begun = self._beams.begin_all(launched_step.first_logits, slots_N, drawn_rows)
            row_errors = [
                SlotError(int(slots_N[row]), int(table.request_ids[slots_N[row]]), fault.code, fault.message)
                for row, fault in drawn_rows.faults.items()
            ]
            executor.fill(slots_N, rows.num_tokens_N, drawn_rows.tokens_N)
            flags_N = self._finish_rules.flags(table, slots_N, rows.num_tokens_N, drawn_rows.tokens_N)
            for row, news in begun.items():
                flags_N[row] = news.flags[0]
        errors = {error.slot: error for error in (*rows.prompt_errors, *row_errors)}
        if drawn_rows is not None:
            is_fine_N = ~np.isin(slots_N, list(errors)) if errors else np.ones(len(slots_N), dtype=bool)
            self._row_sampler.consume(slots_N[is_fine_N], drawn_rows.tokens_N[is_fine_N])
            ends_N = is_fine_N & (flags_N & FLAG_FINISHED > 0)
            ended_slots = slots_N[ends_N].tolist()
            if drawn_rows.redrawn_N is not None and self._reader is not None:
                goes_on_N = drawn_rows.redrawn_N & is_fine_N & ~ends_N
                self._rewinder.note(slots_N[goes_on_N], drawn_rows.tokens_N[goes_on_N], self._in_flight)
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
        self._send_held()
        self._held_result = result
        self._end_slots([*errors, *ended_slots])

    def _send_held(self) -> None:
        """Hand the last result to the writer of the stream.

        The result wakes the writer, which takes the GIL as soon as this thread gives the GIL away. So the loop hands
        over the result when the next step is ready to compute, or when there is no next step. The order of rule 1
        holds, because the loop hands over the result before it sends anything else.
        """
        if self._held_result is not None and self._session is not None:
            self._session.send(self._held_result)
        self._held_result = None

    def _end_slots(self, slots: list[int]) -> None:
        """Free the slots of requests that the shard itself ended. The next entry tells the other ranks."""
        if slots and log.isEnabledFor(logging.DEBUG):
            for slot in slots:
                request_id = int(self._executor.table.request_ids[slot])
                log.debug("request ends", extra={"request_id": request_id, "slot": slot, "step": self._step_number})
        self._executor.end(slots)
        self._entry.add_ended(slots)

    def _tell_apart(self, one: ApartPass) -> None:
        """Tell the other ranks of a pass of searches, behind all that has ended since the last entry."""
        self._channel.send(
            self._entry.take(
                step=self._step_number + 1, is_stop=False, released_slots=(), adapter_orders=(), ready={}, apart=one
            )
        )

    def _send_entry(
        self, *, released_slots: Sequence[int] = (), ready: Mapping[int, int] = NOTHING.ready, is_stop: bool = False
    ) -> None:
        """Tell the other ranks what this rank is about to execute (rule 24)."""
        self._channel.send(
            self._entry.take(
                step=self._step_number + 1,
                is_stop=is_stop,
                released_slots=released_slots,
                adapter_orders=self._adapters.take_orders(),
                ready=ready,
            )
        )


def _log_seats(plan: Plan) -> None:
    """Log which requests a plan seats and drops, each with the id that the router logs too."""
    for drop in plan.drops:
        log.debug("request dropped", extra={"request_id": drop.request_id, "slot": drop.slot, "plan": plan.number})
    for admit in plan.admits:
        log.debug(
            "request admitted",
            extra={
                "request_id": admit.request_id,
                "slot": admit.slot,
                "plan": plan.number,
                "num_tokens": admit.num_tokens,
                "num_cached_tokens": admit.num_cached_tokens,
            },
        )
