"""The step loop of rank 0, in a thread of its own. The loop takes plans in and hands out one result per step.

In each turn the loop takes in the events that arrived, tells the other ranks, composes a step and runs it through the
pipeline (`step_pipeline.py`), which launches and collects steps.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from queue import Empty, SimpleQueue

from textmill_shard.engine.adapter_desk import AdapterDesk, LoadedAdapter, LoadWanted, UnloadWanted
from textmill_shard.engine.adapter_reader import ReadOutcome
from textmill_shard.engine.apart_pass import ApartPass
from textmill_shard.engine.beam_desk import BeamDesk
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
from textmill_shard.engine.media_desk import NOTHING, MediaDesk, MediaTurn
from textmill_shard.engine.rank_channel import RankChannel
from textmill_shard.engine.result_builder import build_result
from textmill_shard.engine.result_outbox import ResultOutbox
from textmill_shard.engine.row_sampling import RowSampler
from textmill_shard.engine.session import EndReason, Session
from textmill_shard.engine.slot_ends import SlotEnds
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.engine.step_pipeline import StepPipeline
from textmill_shard.engine.token_reader import TokenReader
from textmill_shard.grammar.slots import GrammarSlots
from textmill_shard.slots.finish_rules import FinishRules
from textmill_shard.slots.plan import (
    Plan,
    SlotError,
    StepResult,
)
from textmill_shard.slots.plan_check import PlanRejected
from textmill_shard.slots.step_composer import ComposedStep

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
        self.media = media
        self._executor = executor
        self._row_sampler = row_sampler
        self._grammars = grammars
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
        self._entry = EntryDraft()
        self._outbox = ResultOutbox()
        self._ends = SlotEnds(executor, self._entry)
        self._pipeline = StepPipeline(
            executor=executor,
            row_sampler=row_sampler,
            grammars=grammars,
            finish_rules=finish_rules,
            beams=self._beams,
            channel=channel,
            status=status,
            outbox=self._outbox,
            entry=self._entry,
            ends=self._ends,
            reader=reader,
            wake=self._on_step_read,
        )

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
        if self._outbox.session is not None:
            self._pipeline.drain()
        self._end_epoch(EndReason.STOPPING, "the shard is stopping")
        self._send_entry(is_stop=True)
        self._pipeline.close()

    def _take_events(self, *, wait: bool) -> bool:
        """Handle all events that arrived. `wait` waits for the first event. Returns False after a Stop."""
        if wait and self._pipeline.is_empty:
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
            self._pipeline.collect_read()
            return
        if isinstance(event, AdapterEvent):
            self._handle_adapter(event)
            return
        session = event.session
        if isinstance(event, SessionOpened):
            self._begin_epoch(session)
            log.info("epoch begins", extra={"epoch": session.epoch})
        elif session is not self._outbox.session:
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
        self._outbox.begin_epoch(session)
        self._executor.begin_epoch()
        self._grammars.reset()
        if self.media is not None:
            self.media.reset()
        self._beams.clear()
        self._status.begin_epoch()
        self._pipeline.begin_epoch()
        self._entry.begin_epoch()

    def _end_epoch(self, reason: EndReason, message: str) -> None:
        """Free all slots and end the stream. The weights stay, and the loop waits for the next stream (rule 21)."""
        session = self._outbox.session
        if session is None:
            return
        self._outbox.send_held()
        log.info("epoch ends", extra={"epoch": session.epoch, "reason": reason.value, "detail": message})
        session.finish(reason, message)
        self._begin_epoch(session)
        self._outbox.session = None
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
            self._pipeline.drain()
            self._outbox.send(error.rejection)
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
        self._outbox.is_plan_unacknowledged = True
        if self._channel.needs_plans:
            self._entry.add_plan(event.data)

    def _watch_lease(self) -> None:
        session = self._outbox.session
        if session is not None and session.silence_s() > self._lease_s:
            self._end_epoch(EndReason.LEASE, f"nothing heard from the router for {self._lease_s:g} s")

    def _turn(self) -> bool:
        """Compose and run one step. Returns False when no row can run; the loop then waits for an event (rule 2)."""
        if self._pipeline.is_full:
            self._outbox.send_held()
            return False  # the tokens of a step wake the loop
        composed_ns = time.monotonic_ns()
        released_slots = self._grammars.take_compiled(self._executor.table)
        self._executor.release(released_slots)
        media_turn = self._turn_media()
        if media_turn.faults:
            self._pipeline.drain()  # the result that tells of the faults comes behind those of the steps under way
        self._send_entry(released_slots=released_slots, ready=media_turn.ready)
        step = self._executor.compose()
        if self._outbox.session is None:
            return False
        if media_turn.faults:
            self._fail_media(media_turn.faults)
        if step.is_empty:
            self._tell_idle(step)
        else:
            self._pipeline.run(step, composed_ns)
        if not self._beams.is_searching:
            return not step.is_empty
        self._search()
        return True

    def _tell_idle(self, step: ComposedStep) -> None:
        """Tell the router of a plan or of starved slots, which no step with rows will tell soon.

        The acknowledgement of a plan comes behind the results of the steps that were composed before the plan.
        """
        outbox, pipeline = self._outbox, self._pipeline
        outbox.send_held()
        pipeline.add_starved(step.starved_slots)
        if pipeline.is_empty and (outbox.is_plan_unacknowledged or pipeline.has_starved):
            outbox.is_plan_unacknowledged = False
            told = replace(step, starved_slots=pipeline.take_starved())
            outbox.send(build_result(step=0, plan_applied=self._executor.plan_applied, composed=told))

    def _search(self) -> None:
        """Let each search by beams go on by one token, in a step of their own, which overlaps with no other."""
        self._pipeline.drain()
        if not self._beams.is_searching:
            return
        self._status.begin_step()
        begun_ns = time.monotonic_ns()
        self._outbox.send_held()
        news = self._beams.advance()
        number, plan_applied = self._outbox.count_step(), self._executor.plan_applied
        duration_ns = time.monotonic_ns() - begun_ns
        self._outbox.hold(news.as_result(step=number, plan_applied=plan_applied, duration_ns=duration_ns))
        self._ends.end(news.ended_slots, step=number)
        self._status.finish_step(number, plan_applied)

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

    def _fail_media(self, faults: Sequence[SlotError]) -> None:
        """End the requests of slots whose images have failed, in a result of its own.

        Such a slot is in no step, because it computes no token of the image. The entry that tells the other ranks of
        its admission has been sent, and the next one tells them of its end.
        """
        self._outbox.is_plan_unacknowledged = False
        self._outbox.send(StepResult(step=0, plan_applied=self._executor.plan_applied, errors=tuple(faults)))
        self._ends.end([fault.slot for fault in faults], step=self._outbox.step_number)

    def _tell_apart(self, one: ApartPass) -> None:
        """Tell the other ranks of a pass of searches, behind all that has ended since the last entry."""
        self._channel.send(
            self._entry.take(
                step=self._outbox.step_number + 1,
                is_stop=False,
                released_slots=(),
                adapter_orders=(),
                ready={},
                apart=one,
            )
        )

    def _send_entry(
        self, *, released_slots: Sequence[int] = (), ready: Mapping[int, int] = NOTHING.ready, is_stop: bool = False
    ) -> None:
        """Tell the other ranks what this rank is about to execute (rule 24)."""
        self._channel.send(
            self._entry.take(
                step=self._outbox.step_number + 1,
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
