"""Several engine loops behind one router, one per replica of the model.

A replica is a shard group with its own slots, blocks, prefix index and epochs. The set places each request, and hands
the requests of a replica whose stream is lost to the replicas that are up.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence

from textmill_router.adapters.registry import AdapterRegistry
from textmill_router.engine.engine_loop import EngineLoop, NewWatcher, no_watcher
from textmill_router.engine.shard_client import ShardClientOptions
from textmill_router.engine.shard_facts import ShardFacts
from textmill_router.engine.status import LOADING_PHASES, EnginePhase, EngineStatus, EngineUnavailable
from textmill_router.health.group_watch import GroupSigns
from textmill_router.metrics.step_metrics import StepMetrics
from textmill_router.request import GenerationRequest, OutputSink, RequestId, Standing
from textmill_router.scheduler.config import SchedulerConfig
from textmill_router.scheduler.fair_shares import FairShares
from textmill_router.scheduler.placement import Placement
from textmill_router.scheduler.request_state import RequestState
from textmill_router.scheduler.scheduler import QueueFull, Scheduler, SchedulerStats
from textmill_router.scheduler.stats import AdapterLoad, add_stats

log = logging.getLogger(__name__)


class ReplicaSet:
    """The engine loops of all replicas, with the calls of one engine loop.

    The owner calls `start`, then `submit` and `cancel` from the same asyncio loop, then `stop`. The options come one
    per replica, in the order of the replicas' numbers, and `on_change` is called after each change of a status. A loop
    looks for its shard as long as the set lives, so a replica joins again when its shard is back.
    """

    def __init__(
        self,
        client_options: Sequence[ShardClientOptions],
        configure: Callable[[ShardFacts], SchedulerConfig],
        tokenizer_digest: str,
        *,
        on_change: Callable[[], object] = lambda: None,
        adapters: AdapterRegistry | None = None,
        new_watcher: NewWatcher = no_watcher,
    ) -> None:
        self._tell = on_change
        self.adapters = AdapterRegistry() if adapters is None else adapters
        self.steps = StepMetrics()
        self.num_moved_requests = 0
        self._changed = asyncio.Event()
        self._is_stopping = False
        self._request_ids = itertools.count(1)
        self._placement = Placement(len(client_options))
        self._shares = FairShares()  # of the callers, over all replicas
        self.replicas = [
            EngineLoop(
                options,
                configure,
                tokenizer_digest,
                number=number,
                shares=self._shares,
                steps=self.steps,
                on_change=self._on_change,
                adapters=self.adapters,
                on_adapter_lost=self._on_adapter_lost,
                new_watcher=new_watcher,
            )
            for number, options in enumerate(client_options)
        ]

    @property
    def status(self) -> EngineStatus:
        """The status of the service: ready while one replica is ready, stopped when all are.

        Else the status of the replica that has come furthest, where a lost replica counts more than a loading one.
        """
        return max((replica.status for replica in self.replicas), key=_rank_of)

    def signs(self) -> list[GroupSigns]:
        """Return what is known of each replica's life, in the order of the replicas' numbers."""
        return [replica.signs() for replica in self.replicas]

    def give_up(self, number: int, cause: str) -> None:
        """End a replica whose shards do not start again. Requests that no other replica takes fail with the cause."""
        self.replicas[number].give_up(cause)

    def back_in_s(self) -> float | None:
        """Return the seconds until a replica should serve again, or None where one serves or none has served yet."""
        phases = [replica.status.phase for replica in self.replicas]
        if EnginePhase.READY in phases or EnginePhase.LOST not in phases:
            return None
        lost = (replica for replica, phase in zip(self.replicas, phases, strict=True) if phase is EnginePhase.LOST)
        return min(replica.recovery.remaining_s for replica in lost)

    def now(self) -> float:
        """Return the time in seconds, on the clock of `GenerationRequest.arrival_s`."""
        return time.monotonic()

    def next_request_id(self) -> RequestId:
        """Return a number that no other request of any replica has."""
        return RequestId(next(self._request_ids))

    def stats(self) -> SchedulerStats | None:
        """Return the numbers of all queues, slots and blocks together; None before the first epoch."""
        known = [stats for replica in self.replicas if (stats := replica.stats()) is not None]
        return add_stats(known) if known else None

    def num_computed_by_caller(self) -> dict[str, int]:
        """Return the tokens computed for each caller so far by all replicas, by the caller's name."""
        return self._shares.num_computed_tokens()

    def num_by_adapter(self) -> dict[str, AdapterLoad]:
        """Return the running and waiting requests of each adapter, of all replicas together."""
        total: dict[str, AdapterLoad] = {}
        for replica in self.replicas:
            if replica.scheduler is not None:
                for name, load in replica.scheduler.num_by_adapter().items():
                    entry = total.setdefault(name, AdapterLoad())
                    entry.num_running += load.num_running
                    entry.num_waiting += load.num_waiting
        return total

    def can_ever_fit(self, num_tokens: int) -> bool:
        """Whether a request whose prompt and output have so many tokens fits the KV pool of a replica alone."""
        return any(replica.can_ever_fit(num_tokens) for replica in self.replicas)

    async def start(self) -> None:
        """Begin to look for all shards, and return at once."""
        for replica in self.replicas:
            await replica.start()

    async def wait_for_phase(self, *phases: EnginePhase) -> EngineStatus:
        """Wait until the status of the set has one of these phases, and return the status."""
        while (status := self.status).phase not in phases:
            self._changed.clear()
            await self._changed.wait()
        return status

    async def stop(self) -> None:
        """End all streams. Requests that have not ended fail with SHUTDOWN."""
        self._is_stopping = True
        await asyncio.gather(*(replica.stop() for replica in self.replicas))

    def submit(self, request: GenerationRequest, sink: OutputSink) -> None:
        """Take a request, whose outputs go to the sink. Raises EngineUnavailable, and QueueFull when all are full."""
        if len(self.replicas) == 1:
            self.replicas[0].submit(request, sink)
            return
        schedulers = self._open_schedulers()
        state = RequestState(request)
        ranking = self._placement.rank(state, schedulers)
        if not ranking:
            raise EngineUnavailable(self.status)
        for number in ranking:
            scheduler = schedulers[number]
            assert scheduler is not None
            self._placement.note(state, number, scheduler)
            try:
                self.replicas[number].submit(request, sink, state)
            except QueueFull:
                if number == ranking[-1]:
                    raise
            else:
                return

    def pause(self, request_id: RequestId, is_paused: bool) -> None:
        """Let a request rest because its reader is far behind, or go on. Ignored when the request has ended."""
        for replica in self.replicas:
            replica.pause(request_id, is_paused)

    def check_room(self, num_requests: int, standing: Standing) -> None:
        """Raise QueueFull when no replica would let a call of so many requests in, whatever its prompts are."""
        now = self.now()
        full: QueueFull | None = None
        for scheduler in self._open_schedulers():
            if scheduler is None:
                continue
            try:
                scheduler.check_room(num_requests, now, standing)
            except QueueFull as error:
                full = error
            else:
                return
        if full is not None:
            raise full

    def cancel(self, request_id: RequestId) -> None:
        """End a request, whose sink gets no further output. Does nothing when the request has ended before."""
        for replica in self.replicas:
            replica.cancel(request_id)

    def _open_schedulers(self) -> list[Scheduler | None]:
        """The schedulers of the replicas that are up; where none is, of those that will be up again."""
        phases = [replica.status.phase for replica in self.replicas]
        wanted = EnginePhase.READY if EnginePhase.READY in phases else EnginePhase.LOST
        return [
            replica.scheduler if phase is wanted else None for replica, phase in zip(self.replicas, phases, strict=True)
        ]

    def _on_adapter_lost(self, digest: bytes, reason: str) -> None:
        """Withdraw an adapter that a replica could not load again, and fail its requests in every replica."""
        names = self.adapters.withdraw(digest)
        log.error("adapter withdrawn", extra={"names": names, "digest": digest.hex(), "reason": reason})
        for replica in self.replicas:
            replica.fail_adapter(digest, reason)

    def _on_change(self) -> None:
        """Note a new status of a replica, and move the requests of replicas that are down."""
        self._changed.set()
        if not self._is_stopping and len(self.replicas) > 1:
            self._move_from_lost()
        self._tell()

    def _move_from_lost(self) -> None:
        schedulers = self._open_schedulers()
        is_any_up = self.status.phase is EnginePhase.READY
        for number, replica in enumerate(self.replicas):
            if is_any_up and schedulers[number] is None and replica.scheduler is not None:
                self._move_all(number, replica, schedulers)

    def _move_all(self, number: int, replica: EngineLoop, schedulers: Sequence[Scheduler | None]) -> None:
        assert replica.scheduler is not None
        placed, homeless = self._placement.spread(replica.scheduler.give_away(), schedulers)
        for state in homeless:  # no other pool has room, so the request waits for its own replica
            replica.scheduler.adopt(state)
        for state, target in placed:
            self.replicas[target].take_reader(replica, state.request_id)
        if placed:
            self.num_moved_requests += len(placed)
            log.warning(
                "requests of a lost replica go on in others", extra={"replica": number, "num_requests": len(placed)}
            )


def _rank_of(status: EngineStatus) -> tuple[int, int, float]:
    """How far a replica has come; the largest rank is that of the set."""
    if status.phase is EnginePhase.READY:
        return 3, 0, 0.0
    if status.phase is EnginePhase.LOST:
        return 2, 0, 0.0
    if status.phase in LOADING_PHASES:
        return 1, LOADING_PHASES.index(status.phase), status.progress
    return 0, 0, 0.0
