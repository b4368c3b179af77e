"""The step loop of rank 0, in a thread of its own. The loop takes plans in and hands out one result per step.

In each turn the loop takes in the events that arrived, tells the other ranks, composes a step, launches and collects
it. To launch is to run the forward pass; to collect is to bring the tokens to the host, end requests and build the
result. Launching and collecting are two functions, so that a later version can launch a step before it collects the
step before.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np

from textmill_shard.engine.adapter_desk import AdapterDesk, LoadedAdapter, LoadWanted, UnloadWanted
from textmill_shard.engine.adapter_reader import ReadOutcome
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
    Stop,
)
from textmill_shard.engine.media_desk import NOTHING, MediaDesk, MediaTurn
from textmill_shard.engine.memory_faults import NO_ROOM, free_device_memory, is_out_of_memory
from textmill_shard.engine.rank_channel import RankChannel, RankEntry
from textmill_shard.engine.result_builder import build_result, rate_prompts
from textmill_shard.engine.row_sampling import RowSampler
from textmill_shard.engine.session import EndReason, Session
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.engine.upload import Upload
from textmill_shard.grammar.slots import MASK_TIMEOUT_S, GrammarSlots
from textmill_shard.model.forward_batch import ForwardOutput
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.plan import FLAG_FINISHED, NO_IDS, IdArray, Plan, SlotError, StepResult
from textmill_shard.slots.plan_check import PlanRejected
from textmill_shard.slots.step_composer import ComposedStep, split_step

log = logging.getLogger(__name__)

TOWER_LIMIT_S = 30.0  # in which the tower of a GPU computes an image
IDLE_TURN_S = 0.5  # an idle loop wakes as often, to look at the lease and to send the other ranks a sign of life


@dataclass(frozen=True, slots=True)
class _LaunchedStep:
    """A step whose forward pass was started.

    `composed_ns` is a time of the monotonic clock, and `device_ns` is a duration.
    """

    number: int
    plan_applied: int
    step: ComposedStep
    output: ForwardOutput
    composed_ns: int
    device_ns: int


class Engine:
    """Owns the epoch and the slots of rank 0.

    Any thread may call `open_session`, `close_session`, `submit_plan`, `load_adapter`, `unload_adapter` and `stop`.
    Their events take effect in the thread of `run`, which runs all other code but `_on_grammar_compiled`,
    `_on_item_computed` and `_on_adapter_read`. Any thread may use `media.store`.
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
    ) -> None:
        """`media` is None for a model of text."""
        self.media = media
        self._executor = executor
        self._row_sampler = row_sampler
        self._grammars = grammars
        self._finish_rules = finish_rules
        self._channel = channel
        self._adapters = adapters
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
        self._held_result: StepResult | None = None  # of the last step, until the writer of the stream gets it
        self._entry_plans: list[bytes] = []
        self._entry_ended: list[int] = []
        self._is_entry_epoch_new = False

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
        self._end_epoch(EndReason.STOPPING, "the shard is stopping")
        self._send_entry(is_stop=True)

    def _take_events(self, *, wait: bool) -> bool:
        """Handle all events that arrived. `wait` waits for the first event. Returns False after a Stop."""
        if wait:
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
        self._status.begin_epoch()
        self._step_number = 0
        self._held_result = None
        self._is_plan_unacknowledged = False
        self._entry_plans.clear()
        self._entry_ended.clear()
        self._is_entry_epoch_new = True

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
            self._send_held()
            session.send(error.rejection)
            self._end_epoch(EndReason.PLAN_REJECTED, str(error))
            return
        self._executor.apply(event.plan)
        if log.isEnabledFor(logging.DEBUG):
            _log_seats(event.plan)
        for admit in event.plan.admits:
            self._row_sampler.admit(admit)
            if admit.grammar is not None:
                self._grammars.begin(admit, self._on_grammar_compiled)
            if self.media is not None and admit.media and admit.slot not in self._executor.media_faults:
                self.media.admit(admit)
        self._status.report_plan(event.plan.number)
        self._is_plan_unacknowledged = True
        if self._channel.needs_plans:
            self._entry_plans.append(event.data)

    def _watch_lease(self) -> None:
        session = self._session
        if session is not None and session.silence_s() > self._lease_s:
            self._end_epoch(EndReason.LEASE, f"nothing heard from the router for {self._lease_s:g} s")

    def _turn(self) -> bool:
        """Compose and run one step. Returns False when no row can run; the loop then waits for an event (rule 2)."""
        composed_ns = time.monotonic_ns()
        released_slots = self._grammars.take_compiled(self._executor.table)
        self._executor.release(released_slots)
        media_turn = self._turn_media()
        self._send_entry(released_slots=released_slots, ready=media_turn.ready)
        step = self._executor.compose()
        session = self._session
        if session is None:
            return False
        if media_turn.faults:
            self._fail_media(media_turn.faults, session)
        if step.is_empty:
            self._send_held()
            if self._is_plan_unacknowledged or len(step.starved_slots):
                self._is_plan_unacknowledged = False
                session.send(build_result(step=0, plan_applied=self._executor.plan_applied, composed=step))
            return False
        self._run_step(step, session, composed_ns)
        return True

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

    def _run_step(self, step: ComposedStep, session: Session, composed_ns: int) -> None:
        """Run a step. A step that runs out of memory runs again in halves, down to the row that has no room alone."""
        self._status.begin_step()
        launched_step = self._launch(step, composed_ns)
        if launched_step is not None:
            self._collect(launched_step, session)
            self._status.finish_step(launched_step.number, launched_step.plan_applied)
            return
        self._status.report_memory_fault()
        self._grammars.finish_masks()
        free_device_memory(self._executor.device)
        log.warning("a step ran out of memory", extra={"num_rows": len(step.slots_R), "num_tokens": step.num_tokens})
        if len(step.slots_R) == 1:
            self._fail_alone(step)
            return
        for half in split_step(step):
            self._run_step(half, session, time.monotonic_ns())

    def _fail_alone(self, step: ComposedStep) -> None:
        """End the request of the one row of a step, for which the memory has no room."""
        [slot] = step.slots_R.tolist()
        error = SlotError(slot, int(self._executor.table.request_ids[slot]), NO_ROOM.code, NO_ROOM.message)
        self._send_held()
        self._step_number += 1
        plan_applied = self._executor.plan_applied
        self._held_result = build_result(
            step=self._step_number, plan_applied=plan_applied, composed=step, errors={slot: error}
        )
        self._end_slots([slot])
        self._status.finish_step(self._step_number, plan_applied)

    def _launch(self, step: ComposedStep, composed_ns: int) -> _LaunchedStep | None:
        """Run the forward pass of a composed step. Returns None when memory ran out and the step may run again."""
        self._is_plan_unacknowledged = False
        forward_ns = time.monotonic_ns()
        upload = Upload(self._executor.device)
        self._row_sampler.prepare(self._executor.table, step.slots_R[step.samples_R], upload)
        batch = self._executor.build(step, upload)
        self._send_held()
        try:
            output = self._executor.forward(step, batch)
        except Exception as error:
            # With other ranks the calls of this rank and theirs no longer fit.
            if self._channel.needs_plans or not is_out_of_memory(error):
                raise
            return None
        self._step_number += 1
        return _LaunchedStep(
            number=self._step_number,
            plan_applied=self._executor.plan_applied,
            step=step,
            output=output,
            composed_ns=composed_ns,
            device_ns=time.monotonic_ns() - forward_ns,
        )

    def _collect(self, launched_step: _LaunchedStep, session: Session) -> None:
        """Bring the tokens of a step to the host, build the result, and free the slots whose requests ended."""
        executor, table, step = self._executor, self._executor.table, launched_step.step
        pieces, prompt_errors = rate_prompts(
            executor.prompt_stretches(step, launched_step.output.hidden_TD),
            executor.project,
            is_alone=not self._channel.needs_plans,
        )
        slots_N = step.slots_R[step.samples_R]
        flags_N: IdArray = NO_IDS
        drawn_rows = None
        ended_slots: list[int] = []
        row_errors: list[SlotError] = []
        if len(slots_N):
            if self._grammars.has_masks:
                self._status.progress.expect(MASK_TIMEOUT_S)
            drawn_rows = self._row_sampler.draw(table, slots_N, launched_step.output)
            row_errors = [
                SlotError(int(slots_N[row]), int(table.request_ids[slots_N[row]]), fault.code, fault.message)
                for row, fault in drawn_rows.faults.items()
            ]
            executor.append(slots_N, self._channel.share_tokens(drawn_rows.tokens_N))
            flags_N = self._finish_rules.flags(table, slots_N, drawn_rows.tokens_N)
        errors = {error.slot: error for error in (*prompt_errors, *row_errors)}
        if drawn_rows is not None:
            is_fine_N = ~np.isin(slots_N, list(errors)) if errors else np.ones(len(slots_N), dtype=bool)
            self._row_sampler.append(slots_N[is_fine_N], drawn_rows.tokens_N[is_fine_N])
            ended_slots = slots_N[is_fine_N & (flags_N & FLAG_FINISHED > 0)].tolist()
        result = build_result(
            step=launched_step.number,
            plan_applied=launched_step.plan_applied,
            composed=step,
            drawn_rows=drawn_rows,
            flags_N=flags_N,
            errors=errors,
            prompt_logprobs=pieces,
            step_ns=time.monotonic_ns() - launched_step.composed_ns,
            device_ns=launched_step.device_ns,
        )
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
        self._entry_ended += slots

    def _send_entry(
        self, *, released_slots: Sequence[int] = (), ready: Mapping[int, int] = NOTHING.ready, is_stop: bool = False
    ) -> None:
        """Tell the other ranks what this rank is about to execute (rule 24)."""
        self._channel.send(
            RankEntry(
                step=self._step_number + 1,
                is_new_epoch=self._is_entry_epoch_new,
                is_stop=is_stop,
                ended_slots=np.array(self._entry_ended, dtype=np.int64),
                plans=tuple(self._entry_plans),
                released_slots=np.array(released_slots, dtype=np.int64),
                adapter_orders=self._adapters.take_orders(),
                ready_slots=np.array([*ready], dtype=np.int64),
                ready_until=np.array([*ready.values()], dtype=np.int64),
            )
        )
        self._is_entry_epoch_new = False
        self._entry_ended.clear()
        self._entry_plans.clear()


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
