"""Joins requests, scheduler and shard. The engine loop alone owns the scheduler and the stream.

Everything runs in one asyncio loop. For each result, first the plans that answer the result go to the shard, then the
result's tokens go to their readers.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from textmill_proto import PROTOCOL_VERSION

from textmill_router.adapters.registry import AdapterRegistry
from textmill_router.engine.adapter_calls import ShardAway
from textmill_router.engine.adapter_places import AdapterPlaces
from textmill_router.engine.media_bringer import MediaBringer
from textmill_router.engine.recovery import Recovery
from textmill_router.engine.shard_client import ShardClient, ShardClientOptions
from textmill_router.engine.shard_facts import ShardFacts, ShardHealth, pool_of
from textmill_router.engine.status import LOADING_PHASES, EnginePhase, EngineStatus, EngineUnavailable
from textmill_router.engine.wire import PlanRejected
from textmill_router.health.group_watch import GroupSigns
from textmill_router.metrics.media_metrics import MediaCounts
from textmill_router.metrics.step_metrics import StepKind, StepMetrics
from textmill_router.request import Failure, FailureCode, GenerationRequest, OutputSink, RequestId, RequestOutput
from textmill_router.scheduler.cache_watch import CacheWatcher
from textmill_router.scheduler.config import SchedulerConfig
from textmill_router.scheduler.epoch import Counters
from textmill_router.scheduler.fair_shares import FairShares
from textmill_router.scheduler.plan import StepResult
from textmill_router.scheduler.request_state import RequestState
from textmill_router.scheduler.scheduler import Scheduler, SchedulerStats, StreamBroken

log = logging.getLogger(__name__)

STALL_WARNING_S = 30.0
NewWatcher = Callable[[int, ShardFacts], CacheWatcher | None]


def no_watcher(number: int, facts: ShardFacts) -> None:
    """Return None: nobody watches the prefix index."""


class ShardMismatch(Exception):
    """The shard behind a Hello does not fit this router. The text has the value wanted and the value found."""


class _Reader:
    """The sink of one request, and the time in seconds at which the request's last token came (0 before the first)."""

    __slots__ = ("last_token_s", "sink")

    def __init__(self, sink: OutputSink) -> None:
        self.sink = sink
        self.last_token_s = 0.0


class EngineLoop:
    """The engine between the HTTP side and the shard.

    The owner calls `start`, then `submit` and `cancel` from the same asyncio loop, then `stop`. `configure` makes the
    scheduler's settings from the facts of the first Hello. `tokenizer_digest` is the digest of the router's own
    tokenizer; a shard with another digest is refused. `number` is that of the replica, `shares` and `steps` are the
    accounts and numbers that several loops may share, and `on_change` is called after each change of the status.

    An epoch begins when the shards hold the adapters that the registry `adapters` wants. `on_adapter_lost` is called
    with a digest that they could not load again; without it the loop withdraws the digest from the registry.
    `new_watcher` makes the watcher of the prefix index from the number of the replica and the facts of its first Hello.
    """

    def __init__(
        self,
        client_options: ShardClientOptions,
        configure: Callable[[ShardFacts], SchedulerConfig],
        tokenizer_digest: str,
        *,
        number: int = 0,
        shares: FairShares | None = None,
        steps: StepMetrics | None = None,
        on_change: Callable[[], object] = lambda: None,
        adapters: AdapterRegistry | None = None,
        on_adapter_lost: Callable[[bytes, str], None] | None = None,
        new_watcher: NewWatcher = no_watcher,
    ) -> None:
        self.number = number
        self._shares = shares
        self._new_watcher = new_watcher
        self._configure = configure
        self._tokenizer_digest = tokenizer_digest
        self._on_change = on_change
        self._client = ShardClient(client_options)
        registry = AdapterRegistry() if adapters is None else adapters

        def withdraw(digest: bytes, reason: str) -> None:
            registry.withdraw(digest)
            self.fail_adapter(digest, reason)

        self.adapters = AdapterPlaces(self._client, registry, on_adapter_lost or withdraw)
        self._restoring: asyncio.Task[None] | None = None  # between a Hello and the begin of its epoch
        self._scheduler: Scheduler | None = None
        self._readers: dict[RequestId, _Reader] = {}
        self.steps = steps or StepMetrics()
        self._status = EngineStatus()
        self._status_changed = asyncio.Event()
        self._held_outputs: list[RequestOutput] = []
        self._is_tick_due = False
        self._has_broken = False
        self._heard_s = self.now()  # the last time that the shard said anything but a result
        self._moved_s = self.now()  # the last time that a step ended, or that nothing ran
        self.media_counts = MediaCounts()
        self._num_media_encodes = 0  # by the last heartbeat of the shard's process
        self._media = MediaBringer(
            self._client,
            now=self.now,
            on_ready=self._on_media_ready,
            on_failed=self._on_media_failed,
            counts=self.media_counts,
        )
        self._num_memory_faults = 0  # by the last heartbeat of the shard's process, which counts from its start
        self._is_overdue = False  # whether the shard's last heartbeat called its step loop late
        self._warned_s = 0.0  # the last time that the log warned of a stall
        self.recovery = Recovery(self.now, self.steps.recovery)
        self._task: asyncio.Task[None] | None = None
        self._request_ids = itertools.count(1)

    # ---- Calls of the HTTP side.

    @property
    def status(self) -> EngineStatus:
        return self._status

    def now(self) -> float:
        """Return the time in seconds, on the clock of `GenerationRequest.arrival_s`."""
        return time.monotonic()

    def signs(self) -> GroupSigns:
        """Return what is known of the shards' life; cheap enough for every probe."""
        now_s = self.now()
        num_unpaused = 0 if self._scheduler is None else self._scheduler.num_unpaused
        return GroupSigns(
            is_linked=self._status.phase is EnginePhase.READY,
            silent_s=now_s - max(self._heard_s, self._moved_s),
            stepless_s=now_s - self._moved_s if num_unpaused else 0.0,
            step_limit_s=STALL_WARNING_S,
            is_overdue=self._is_overdue,
        )

    def next_request_id(self) -> RequestId:
        return RequestId(next(self._request_ids))

    @property
    def scheduler(self) -> Scheduler | None:
        """The scheduler, for the placement of requests; None before the first epoch and after the stop."""
        return None if self._status.phase is EnginePhase.STOPPED else self._scheduler

    def stats(self) -> SchedulerStats | None:
        """Return the numbers of queue, slots and blocks; None before the first epoch."""
        return None if self._scheduler is None else self._scheduler.stats()

    @property
    def counters(self) -> Counters | None:
        """The scheduler's counters over all epochs, to be read and not written; None before the first epoch."""
        return None if self._scheduler is None else self._scheduler.counters

    def can_ever_fit(self, num_tokens: int) -> bool:
        """Whether a request whose prompt and output have so many tokens fits the KV pool alone.

        True before the first epoch, because the size of the pool is not known yet.
        """
        return self._scheduler is None or self._scheduler.can_ever_fit(num_tokens)

    async def start(self) -> None:
        """Begin to look for the shard, and return at once."""
        assert self._task is None
        self._task = asyncio.create_task(self._run())

    async def wait_for_phase(self, *phases: EnginePhase) -> EngineStatus:
        """Wait until the status has one of these phases, and return the status. The caller limits the time."""
        while self._status.phase not in phases:
            self._status_changed.clear()
            await self._status_changed.wait()
        return self._status

    async def stop(self) -> None:
        """End the stream. Requests that have not ended fail with SHUTDOWN."""
        tasks = [task for task in (self._task, self._restoring) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._end("the router is stopping")

    def give_up(self, cause: str) -> None:
        """Stop for good, because the shards do not start again. Requests that have not ended fail with the cause."""
        if self._task is not None:
            self._task.cancel()
        self._end_serving(cause)

    def submit(self, request: GenerationRequest, sink: OutputSink, state: RequestState | None = None) -> None:
        """Take a request, whose outputs go to the sink. Raises EngineUnavailable, and the scheduler's QueueFull.

        `state` is the request's state where a placement has made one.
        """
        if self._scheduler is None or self._status.phase is EnginePhase.STOPPED:
            raise EngineUnavailable(self._status)
        self._scheduler.on_submit(request, self.now(), state)
        self._readers[request.request_id] = _Reader(sink)
        self._tick_soon()

    def cancel(self, request_id: RequestId) -> None:
        """End a request, whose sink gets no further output. Does nothing when the request has ended before."""
        if self._readers.pop(request_id, None) is None:
            return
        assert self._scheduler is not None
        self._scheduler.on_cancel(request_id)
        self._media.cancel(request_id)
        self._tick_soon()

    def pause(self, request_id: RequestId, is_paused: bool) -> None:
        """Let a request rest because its reader is far behind, or go on. Ignored when the request has ended."""
        if request_id in self._readers:
            assert self._scheduler is not None
            self._scheduler.on_pause(request_id, is_paused)
            self._tick_soon()

    def fail_adapter(self, digest: bytes, reason: str) -> None:
        """Fail the requests of an adapter that a shard could not load again."""
        if self._scheduler is not None:
            message = f"the adapter is lost, because a shard that started again could not load it: {reason}"
            self._deliver(self._scheduler.fail_adapter(digest, message))
            self._tick_soon()

    def take_reader(self, other: "EngineLoop", request_id: RequestId) -> None:
        """Take over the reader of a request that this loop's scheduler has adopted from the scheduler of the other."""
        self._readers[request_id] = other._readers.pop(request_id)
        self._tick_soon()

    # ---- Calls of the stream: the methods of `StreamHandler`.

    def on_health(self, health: ShardHealth) -> None:
        self._heard_s = self.now()
        if self._scheduler is not None or health.is_ready:
            return
        phase = EnginePhase(health.phase) if health.phase in LOADING_PHASES else EnginePhase.STARTING
        self._set_status(
            EngineStatus(phase, health.progress, error=health.detail or None if health.has_failed else None)
        )

    def on_hello(self, facts: ShardFacts, epoch: int) -> None:
        self._check(facts)
        self.adapters.begin(facts.adapter_digests)
        if self.adapters.is_complete:
            self._begin_epoch(facts, epoch)
        else:  # meanwhile heartbeats are read, and requests wait as between two epochs
            self._restoring = asyncio.create_task(self._restore_adapters(facts, epoch))

    async def _restore_adapters(self, facts: ShardFacts, epoch: int) -> None:
        try:
            await self.adapters.restore()
            self._begin_epoch(facts, epoch)
        except ShardAway as error:
            self._client.cut(f"adapters could not be restored: {error}")
        except Exception as error:
            assert self._task is not None
            self._task.cancel()
            self._stop_serving(error)

    def _begin_epoch(self, facts: ShardFacts, epoch: int) -> None:
        if self._scheduler is None:
            watcher = self._new_watcher(self.number, facts)
            self._scheduler = Scheduler(self._configure(facts), self._shares, watcher=watcher)
        began_s = time.perf_counter()
        self._moved_s = self.now()
        self._is_overdue = False
        decision = self._scheduler.begin_epoch(pool_of(facts), self._moved_s)
        self.steps.on_plans(decision.plans, self._scheduler.num_running, time.perf_counter() - began_s)
        self._client.send(decision.plans)
        self._bring_media(self._scheduler)
        self.recovery.end()
        self._set_status(EngineStatus(EnginePhase.READY, 1.0, facts))
        self._deliver(decision.outputs)
        numbers = {"epoch": epoch, "num_slots": facts.num_slots, "num_blocks": facts.num_blocks}
        log.info("epoch begins", extra={"replica": self.number, **numbers})

    def on_result(self, result: StepResult) -> None:
        scheduler = self._scheduler
        assert scheduler is not None
        began_s = time.perf_counter()
        num_prefill_tokens = scheduler.counters.num_prefill_tokens
        has_prefill = bool(result.errors) and scheduler.is_any_in_prefill  # a prompt that failed computed nothing
        try:
            self._moved_s = self.now()
            decision = scheduler.on_step(result, self._moved_s)
        except StreamBroken as error:
            if self._has_broken:  # No request has finished since the broken rule before.
                raise
            self._has_broken = True
            self._client.cut(f"the shard broke a rule of the stream: {error}")
            return
        if scheduler.has_wanted_media:
            self._bring_media(scheduler)
        has_prefill = has_prefill or scheduler.counters.num_prefill_tokens > num_prefill_tokens
        kind = StepKind.PREFILL if has_prefill else StepKind.DECODE
        if decision.plans:
            # First the shard, then the readers: `send` wakes the stream's writer, which so runs before the delivery.
            self._client.send(decision.plans)
            self._held_outputs += decision.outputs
            asyncio.get_running_loop().call_soon(self._deliver_timed, (), kind)
            planning_s = time.perf_counter() - began_s
            self.steps.on_plans(decision.plans, scheduler.num_running, planning_s)
        else:
            planning_s = time.perf_counter() - began_s
            self._deliver_timed(decision.outputs, kind)
        if result.step:
            self.steps.on_step(kind, result, planning_s)

    def on_rejected(self, rejected: PlanRejected) -> None:
        assert self._scheduler is not None
        log.error("plan rejected", extra={"plan": rejected.plan_number, "reason": rejected.message})
        self._deliver(self._scheduler.on_plan_rejected(rejected.plan_number, rejected.message, self.now()))

    def on_heartbeat(
        self, *, overdue_s: float, num_memory_faults: int = 0, media_bytes: int = 0, num_media_encodes: int = 0
    ) -> None:
        """Note that the shard lives. Warn when requests run and no step has ended for `STALL_WARNING_S`.

        No request is ended here, because a large step may take minutes. The shard knows when a step takes too long
        (`overdue_s`), and the launcher ends a shard that does not come back.
        """
        now_s = self._heard_s = self.now()
        self._is_overdue = overdue_s > 0.0
        self.steps.num_memory_faults += max(0, num_memory_faults - self._num_memory_faults)
        self._num_memory_faults = num_memory_faults
        self.media_counts.num_kept_bytes = media_bytes
        # A shard that has started again counts from 0.
        is_same_process = num_media_encodes >= self._num_media_encodes
        self.media_counts.num_encodes += num_media_encodes - (self._num_media_encodes if is_same_process else 0)
        self._num_media_encodes = num_media_encodes
        num_running = 0 if self._scheduler is None else self._scheduler.num_unpaused
        if not num_running:
            self._moved_s = now_s
        elif now_s - max(self._moved_s, self._warned_s) >= STALL_WARNING_S:
            self._warned_s = now_s
            log.warning(
                "no step has ended for %.0f s: a very large step, or a rank that hangs",
                STALL_WARNING_S,
                extra={"num_running": num_running},
            )

    def on_lost(self, reason: str) -> None:
        self.adapters.end()
        self._media.end()
        if self._restoring is not None:
            self._restoring.cancel()
            self._restoring = None
        if self._scheduler is None:  # no epoch has begun yet
            self._set_status(EngineStatus())
            return
        if self._scheduler.num_running:
            self.steps.on_lost_step(StepKind.PREFILL if self._scheduler.is_any_in_prefill else StepKind.DECODE)
        self._deliver(self._scheduler.end_epoch(self.now()))
        if self._status.phase is EnginePhase.READY:  # else the stream was lost before its epoch began
            self.recovery.lose()
        self._set_status(EngineStatus(EnginePhase.LOST, 0.0, self._status.facts, reason))

    # ---- Inner parts.

    def _bring_media(self, scheduler: Scheduler) -> None:
        for request in scheduler.take_wanted_media():
            self._media.bring(request)

    def _on_media_ready(self, request_id: RequestId, lease_end_s: float) -> None:
        if self._scheduler is not None:
            self._scheduler.on_media(request_id, lease_end_s)
            self._tick_soon()

    def _on_media_failed(self, request_id: RequestId, message: str) -> None:
        if self._scheduler is not None:
            self._deliver(self._scheduler.fail_media(request_id, message))
            self._tick_soon()

    async def _run(self) -> None:
        try:
            await self._client.run(self)
        except Exception as error:
            self._stop_serving(error)

    def _stop_serving(self, error: Exception) -> None:
        """End for good. The owner of this loop sees the phase STOPPED and ends the process."""
        log.critical("engine stopped", exc_info=not isinstance(error, ShardMismatch), extra={"reason": str(error)})
        self._end_serving(str(error) or type(error).__name__)

    def _end_serving(self, cause: str) -> None:
        if self._scheduler is not None:
            self._deliver(self._scheduler.end_epoch(self.now()))
            # For an instant the loop counts as lost, so that a set of replicas can move the requests.
            self._set_status(EngineStatus(EnginePhase.LOST, 0.0, self._status.facts, cause))
        self._end(cause)

    def _tick_soon(self) -> None:
        """Plan once, after this turn of the loop, for all that the turn submits or cancels (rule 4)."""
        if not self._is_tick_due:
            self._is_tick_due = True
            asyncio.get_running_loop().call_soon(self._tick)

    def _tick(self) -> None:
        self._is_tick_due = False
        if self._scheduler is not None and self._status.phase is not EnginePhase.STOPPED:
            began_s = time.perf_counter()
            plans = self._scheduler.on_tick(self.now())
            self._client.send(plans)
            if self._scheduler.has_wanted_media:
                self._bring_media(self._scheduler)
            self.steps.on_plans(plans, self._scheduler.num_running, time.perf_counter() - began_s)
            late = self._scheduler.take_late()
            if late:
                self._deliver(late)

    def _deliver_timed(self, outputs: Sequence[RequestOutput], kind: StepKind) -> None:
        """Deliver the outputs of a step, and note how long the readers took."""
        if not outputs and not self._held_outputs:
            return
        began_s = time.perf_counter()
        self._deliver(outputs)
        self.steps.on_text(kind, time.perf_counter() - began_s)

    def _deliver(self, outputs: Iterable[RequestOutput]) -> None:
        """Hand outputs to their readers, first the held outputs of earlier results and then these."""
        if self._held_outputs:
            held, self._held_outputs = self._held_outputs, []
            outputs = [*held, *outputs]
        readers = self._readers
        now_s = self.now()
        num_by_skipped, inter_token = self.steps.num_outputs_by_skipped, self.steps.inter_token
        for output in outputs:
            request_id = output.request_id
            reader = readers.get(request_id)
            if reader is None:
                continue  # The request was cancelled while the step ran.
            sink = reader.sink
            num_tokens = len(output.tokens)
            if num_tokens:
                num_by_skipped[num_tokens - 1] += 1
                if reader.last_token_s:
                    inter_token.observe((now_s - reader.last_token_s) / num_tokens, num_tokens)
                reader.last_token_s = now_s
            if output.finish is not None or output.failure is not None:
                del readers[request_id]
                self._has_broken = False
            try:
                sink.on_output(output)
            except Exception:  # The fault of one reader ends that reader, not the batch.
                log.exception("reader of a request failed", extra={"request_id": request_id})
                self.cancel(request_id)
                failure = Failure(FailureCode.INTERNAL, "the text of this request could not be made")
                with suppress(Exception):  # The log above has the fault of a reader that raises again.
                    sink.on_output(RequestOutput(request_id, failure=failure))

    def _check(self, facts: ShardFacts) -> None:
        """Check the facts of a Hello (rule 22). Raises ShardMismatch.

        The shard must speak this protocol, have this router's tokenizer, and serve the model of the epoch before.
        """
        if facts.protocol_version != PROTOCOL_VERSION:
            raise ShardMismatch(f"shard speaks protocol {facts.protocol_version}, router {PROTOCOL_VERSION}")
        if facts.tokenizer_digest and facts.tokenizer_digest != self._tokenizer_digest:
            raise ShardMismatch(
                f"shard has tokenizer {facts.tokenizer_digest}, router {self._tokenizer_digest}: "
                "start both with the same model folder"
            )
        before = self._status.facts
        if before is None:
            return
        for name in ("model_id", "model_sha", "model_type", "dtype", "vocab_size", "tokenizer_digest", "block_size"):
            if getattr(before, name) != getattr(facts, name):
                raise ShardMismatch(f"{name} of the new epoch is {getattr(facts, name)}, was {getattr(before, name)}")

    def _end(self, reason: str) -> None:
        if self._status.phase is EnginePhase.STOPPED:
            return
        self._media.end()
        self._deliver(())
        self._set_status(EngineStatus(EnginePhase.STOPPED, 0.0, self._status.facts, reason))
        failure = Failure(FailureCode.SHUTDOWN, reason)
        readers, self._readers = self._readers, {}
        for request_id, reader in readers.items():
            reader.sink.on_output(RequestOutput(request_id, failure=failure))

    def _set_status(self, status: EngineStatus) -> None:
        self._status = status
        self._status_changed.set()
        self._on_change()
