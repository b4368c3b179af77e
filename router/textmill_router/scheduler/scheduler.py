"""The scheduler chooses which requests run. Pure and synchronous; docs/wire.md holds the rules that it keeps."""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from textmill_router.request import EQUAL, FailureCode, GenerationRequest, RequestId, RequestOutput, Standing
from textmill_router.scheduler.account import Account
from textmill_router.scheduler.cache_watch import CacheWatcher
from textmill_router.scheduler.config import SchedulerConfig
from textmill_router.scheduler.epoch import Counters, Epoch
from textmill_router.scheduler.fair_shares import FairShares
from textmill_router.scheduler.paces import Paces
from textmill_router.scheduler.plan import Plan, ShardPool, StepResult
from textmill_router.scheduler.request_state import RequestState, RequestStatus
from textmill_router.scheduler.seating import admit_waiting
from textmill_router.scheduler.stats import AdapterLoad, SchedulerStats, collect_stats
from textmill_router.scheduler.step_reader import StepReader, StreamBroken, failed
from textmill_router.scheduler.suspects import Suspects
from textmill_router.scheduler.waiting_queue import QueueBound, QueueFull, WaitingQueue

LATE_MESSAGE = "the first token could not come within x-request-timeout-ms: the prompt takes longer to read"

__all__ = [
    "DoesNotFit",
    "PlanRejectedTwice",
    "PoolMismatch",
    "QueueFull",
    "Scheduler",
    "SchedulerStats",
    "StepDecision",
    "StreamBroken",
]


@dataclass(frozen=True, slots=True)
class StepDecision:
    """The caller sends `plans` to the shard first, in order, then hands `outputs` to the readers.

    There is more than one plan only where one message would be too long (rule 4).
    """

    plans: tuple[Plan, ...]
    outputs: tuple[RequestOutput, ...]


class PoolMismatch(Exception):
    """The shard of a new epoch does not fit this configuration, or cannot continue the requests of the last epoch."""


class DoesNotFit(ValueError):
    """The request is larger than the whole pool; validation should have refused the request."""


class PlanRejectedTwice(Exception):
    """The shard refused two plans, and no request finished between them. A new epoch does not cure such a bug."""


class Scheduler:
    """Owner of queue, slots, blocks and prefix index. One thread calls it; it never waits and has no clock of its own.

    The caller calls `begin_epoch`, then `on_tick` and `on_step` many times, then `end_epoch`, and so on with the next
    epoch. `on_submit` and `on_cancel` may be called at any time, also while no epoch is live. A request gets outputs
    until one of them has `finish` or `failure`; a cancelled request gets no output after `on_cancel`. One step may give
    a request two outputs, because prompt log-probabilities come apart from the token and before it.
    """

    epoch_type = Epoch  # tests plant their bugs here

    def __init__(
        self, config: SchedulerConfig, shares: FairShares | None = None, *, watcher: CacheWatcher | None = None
    ) -> None:
        """`shares` are the accounts of callers that several schedulers share; None makes accounts for this one."""
        self._config = config
        self._watcher = watcher  # of the prefix index
        self._queue = WaitingQueue(max_requests=config.max_waiting_requests, max_tokens=config.max_waiting_tokens)
        self._requests: dict[RequestId, RequestState] = {}  # every request that still expects an output
        self._suspects = Suspects()
        self._paces = Paces()
        self._shares = FairShares() if shares is None else shares
        self._shares.join(self)
        self._late: list[RequestOutput] = []  # failures of requests that could not be on time, not delivered yet
        self._counters = Counters()
        self._epoch: Epoch | None = None
        self._reader: StepReader | None = None
        self._pool: ShardPool | None = None  # of the last epoch, live or not
        self._has_rejection = False  # a plan was rejected, and no request has finished since
        self._is_epoch_condemned = False  # a rule was broken, by us or the shard: only `end_epoch` may follow
        self._undelivered: list[RequestOutput] = []

    def begin_epoch(self, pool: ShardPool, now: float) -> StepDecision:
        """Begin the epoch of a Hello: re-admit the requests that ran before, oldest first (rule 22).

        The first plan always holds the budget. The outputs are the failures of requests that do not fit the new pool,
        if the pool became smaller. Raises `PoolMismatch` when there are more slots than tokens in a step (rule 16), or
        when the block size has changed.
        """
        assert self._epoch is None, "end_epoch comes first"
        self._check_pool(pool)
        self._pool = pool
        self._counters.num_epochs += 1
        self._epoch = self.epoch_type(pool, self._config, self._counters, self._watcher)
        self._tell_cleared()
        self._reader = StepReader(self._epoch)
        self._is_epoch_condemned = False
        outputs = []
        for state in list(self._queue):
            if not self._epoch.media.can_ever_hold(state.request):
                self._queue.remove(state)
                message = f"the images do not fit the restarted shard, which sets {pool.media_cache_bytes} bytes aside"
                outputs.append(self._fail(state, FailureCode.MEDIA, message))
            elif not self.can_ever_hold(state):
                self._queue.remove(state)
                message = (
                    f"{state.max_places + 1} tokens do not fit the restarted shard, which holds {pool.num_blocks} "
                )
                outputs.append(self._fail(state, FailureCode.INTERNAL, f"{message}blocks of {pool.block_size}"))
        plans = self._plan(now)
        return StepDecision(plans, (*outputs, *self.take_late()))

    def _tell_cleared(self) -> None:
        if self._watcher is not None:
            self._watcher.on_cleared()

    def end_epoch(self, now: float) -> tuple[RequestOutput, ...]:
        """End the epoch because the stream is lost. The requests wait in the queue until `begin_epoch`.

        Returns the failure of the suspect that was alone in prefill, if there was one (rule 22), and the outputs that
        a result had given before that result broke the stream. Does nothing while no epoch is live.
        """
        if self._epoch is None:
            return ()
        outputs = self._undelivered
        self._undelivered = []
        occupants = list(self._epoch.slots.occupants())
        self._epoch = None
        self._reader = None
        self._tell_cleared()
        is_alone = sum(not state.has_token_in_epoch for state in occupants) == 1
        for state in occupants:
            if state.status is RequestStatus.CANCELLED:
                continue
            # A broken rule is not a death: nobody is blamed for it.
            if not self._is_epoch_condemned and self._suspects.is_guilty(state, is_alone=is_alone):
                message = (
                    "the model server stopped twice or more while it read this prompt, at last with no other beside it"
                )
                outputs.append(self._fail(state, FailureCode.SUSPECT, message))
            else:
                state.was_lost = True
                state.num_lost_tokens = state.num_computed_tokens
                self._put_back(state)
        self._suspects.end_epoch()
        return tuple(outputs)

    def check_room(self, num_requests: int, now: float, standing: Standing = EQUAL) -> None:
        """Raise `QueueFull` when a call of so many requests would not be let in, whatever its prompts are.

        The call is bounded by the predicted wait too, which `on_submit` does not look at, because a call's requests
        are let in together.
        """
        # Each request has at least one token.
        self._queue.check_room(num_requests, num_requests, num_free_slots=self._num_free_slots)
        max_waiting_s = self._config.max_waiting_s
        if max_waiting_s is None:
            return
        wait_s = self.predicted_wait_s(now, standing)
        if wait_s is not None and wait_s > max_waiting_s:
            raise QueueFull(QueueBound.SECONDS, found=wait_s, limit=max_waiting_s)

    def predicted_wait_s(self, now: float, standing: Standing = EQUAL) -> float | None:
        """The seconds that a new request of this standing would wait for a slot; None before the pace is known."""
        if not len(self._queue):
            return 0.0
        account = self._shares.find(standing.caller)
        num_before = self._queue.num_tokens_before(account, standing.weight, standing.priority)
        return self._paces.queue.wait_s(num_before, self._queue.num_next_tokens, now)

    def on_submit(self, request: GenerationRequest, now: float, state: RequestState | None = None) -> None:
        """Put a request into the queue; it is in the plan of the next `on_tick` or `on_step`.

        `state` is the request's state where the caller has made one to look for its prefix. Raises `QueueFull`, or
        `DoesNotFit` when the pool could not hold the request even alone.
        """
        assert request.request_id not in self._requests, request.request_id
        num_prompt, num_total = len(request.prompt_ids), len(request.prompt_ids) + request.max_new_tokens
        assert num_prompt > 0, request.request_id
        assert request.max_new_tokens > 0, request.request_id
        if state is None:
            state = RequestState(request)
        if not self.can_ever_hold(state):
            raise DoesNotFit(f"prompt has {num_prompt} tokens, with max_new_tokens {num_total}: more than the KV pool")
        if self._epoch is not None and request.media and not self._epoch.media.can_ever_hold(request):
            raise DoesNotFit("the images take more bytes than the shard has set aside")
        self._queue.check_room(num_prompt, num_free_slots=self._num_free_slots)
        if request.shares_prompt_of is not None:
            state.leader = self._requests.get(request.shares_prompt_of)
            assert state.leader is None or _has_same_places(request, state.leader.request), request.request_id
        self._enter(state)

    @property
    def _num_free_slots(self) -> int:
        return 0 if self._epoch is None else self._epoch.slots.num_free

    def _enter(self, state: RequestState) -> None:
        """Put a request of this scheduler into the queue, in its caller's line."""
        account = state.account = self._shares.account_of(state.request.standing)
        if self._shares.has_several:
            self._shares.enter(account)
        self._requests[state.request_id] = state
        self._queue.push(state)

    def busy_accounts(self) -> Iterator[Account | None]:
        """The accounts of the callers whose requests wait or have a slot here; for `FairShares`."""
        yield from self._queue.accounts()
        if self._epoch is not None:
            yield from (state.account for state in self._epoch.slots.occupants())

    def charge_outputs(self) -> None:
        """Charge the callers for the output tokens that were computed here since the last charge; for `FairShares`."""
        if self._epoch is not None:
            for state in self._epoch.slots.occupants():
                state.charge_outputs()

    def give_away(self) -> list[RequestState]:
        """Give up all waiting requests, in their order, to other schedulers; call while no epoch is live.

        This scheduler gives them no output from now on.
        """
        assert self._epoch is None, "the shard still has requests"
        states = list(self._queue)
        for state in states:
            self._queue.remove(state)
            del self._requests[state.request_id]
        return states

    def adopt(self, state: RequestState) -> None:
        """Put a request that another scheduler gave away into the queue, at its place in the order.

        Never refuses, because the other scheduler had let the request in. The request must fit the pool.
        """
        assert state.request_id not in self._requests, state.request_id
        assert state.status is RequestStatus.WAITING, state
        assert self.can_ever_hold(state), state
        state.epoch = 0  # its number is one of the other shard's epochs
        if state.leader is not None and state.leader.request_id not in self._requests:
            state.leader = None
        self._enter(state)

    def on_cancel(self, request_id: RequestId) -> None:
        """End a waiting or running request, which gets no output from now on. Unknown and ended ids are ignored."""
        state = self._requests.pop(request_id, None)
        if state is None:
            return
        if state.status is RequestStatus.WAITING:
            self._queue.remove(state)
            self._forget_media(state)
        elif state.status is RequestStatus.RUNNING:
            assert self._epoch is not None
            self._epoch.leave(state, RequestStatus.CANCELLED)
        state.status = RequestStatus.CANCELLED

    def fail_adapter(self, digest: bytes, message: str) -> tuple[RequestOutput, ...]:
        """Fail every request that runs with this adapter, because no shard has the adapter's weights any more."""
        lost = [state for state in self._requests.values() if state.request.adapter_digest == digest]
        for state in lost:
            self.on_cancel(state.request_id)
        return tuple(failed(state, FailureCode.ADAPTER_LOST, message) for state in lost)

    @property
    def has_wanted_media(self) -> bool:
        """Whether `take_wanted_media` has something to return. Look after each call that may make a plan."""
        return self._epoch is not None and self._epoch.media.has_wanted

    def take_wanted_media(self) -> list[GenerationRequest]:
        """The requests whose images the engine must bring to the shard, or ask for, since the last call (rule 33)."""
        return [] if self._epoch is None else self._epoch.media.take_wanted()

    def on_media(self, request_id: RequestId, lease_end_s: float) -> None:
        """Note that the shard holds all images of a request until this time; then call `on_tick`."""
        if self._epoch is not None:
            self._epoch.media.bring(request_id, lease_end_s)

    def fail_media(self, request_id: RequestId, message: str) -> tuple[RequestOutput, ...]:
        """Fail a request whose images cannot be brought to the shard. Unknown and ended ids are ignored."""
        state = self._requests.get(request_id)
        if state is None:
            return ()
        self.on_cancel(request_id)
        return (failed(state, FailureCode.MEDIA, message),)

    def num_by_adapter(self) -> dict[str, AdapterLoad]:
        """The running and the waiting requests of each adapter, by the name that the requests gave. Walks them all."""
        loads: dict[str, AdapterLoad] = {}
        for state in self._requests.values():
            name = state.request.adapter_name
            if name:
                load = loads.setdefault(name, AdapterLoad())
                if state.status is RequestStatus.RUNNING:
                    load.num_running += 1
                else:
                    load.num_waiting += 1
        return loads

    def on_pause(self, request_id: RequestId, is_paused: bool) -> None:
        """Grant a request no further blocks, or again. Unknown and ended ids are ignored.

        The shard computes up to the places that the request has, which are `ahead_tokens` at most.
        """
        state = self._requests.get(request_id)
        if state is not None:
            state.is_paused = is_paused

    def on_step(self, result: StepResult, now: float) -> StepDecision:
        """Read one result; call in the order of arrival. Raises `StreamBroken` when the result breaks a rule.

        After `StreamBroken` call `end_epoch`, which returns the outputs that this result had given before it broke the
        rule. Between the two calls further results are ignored and no plan is made.
        """
        assert self._reader is not None, "no epoch"
        if self._is_epoch_condemned:
            return StepDecision((), ())
        outputs: list[RequestOutput] = []
        num_prefill_tokens = self._counters.num_prefill_tokens
        try:
            for state in self._reader.acknowledge(result):
                if state.status is RequestStatus.PREEMPTED:
                    self._put_back(state)
            self._reader.read(result, outputs)
        except StreamBroken:
            self._is_epoch_condemned = True
            self._undelivered = outputs
            raise
        finally:
            for output in outputs:
                if output.finish is not None or output.failure is not None:
                    del self._requests[output.request_id]
                    self._has_rejection = False
        num_prefill_tokens = self._counters.num_prefill_tokens - num_prefill_tokens
        if num_prefill_tokens:
            self._paces.prefill.note(num_prefill_tokens, result.step_s)
        plans = self._plan(now)
        if self._late:
            outputs += self.take_late()
        return StepDecision(plans, tuple(outputs))

    def on_tick(self, now: float) -> tuple[Plan, ...]:
        """The plans for the requests that were submitted or cancelled since the last plan; call once per loop turn.

        Then call `take_late`.
        """
        return self._plan(now)

    def take_late(self) -> list[RequestOutput]:
        """The failures of requests that `on_tick` found to be too late for their deadlines."""
        late, self._late = self._late, []
        return late

    def on_plan_rejected(self, plan_number: int, message: str, now: float) -> tuple[RequestOutput, ...]:
        """Fail the requests that this plan admitted (rule 20). Call `end_epoch` next; the others go on in a new epoch.

        Raises `PlanRejectedTwice` when no request has finished since the rejection before this one.
        """
        assert self._epoch is not None, "no epoch"
        if self._has_rejection:
            raise PlanRejectedTwice(f"plan {plan_number} was refused: {message}")
        self._has_rejection = True
        self._is_epoch_condemned = True
        outputs = []
        for state in self._epoch.slots.occupants():
            if state.admit_plan == plan_number and state.request_id in self._requests:
                outputs.append(
                    self._fail(state, FailureCode.PLAN_REJECTED, f"the model server refused the plan: {message}")
                )
        return tuple(outputs)

    def can_ever_fit(self, num_tokens: int) -> bool:
        """Whether a request of so many tokens, prompt and output, fits the pool alone. True while no epoch was live."""
        pool = self._pool
        return pool is None or num_tokens <= pool.num_blocks * pool.block_size

    def can_ever_hold(self, state: RequestState) -> bool:
        """Whether the blocks of this request fit the pool alone. True while no epoch was live."""
        pool = self._pool
        return pool is None or state.num_blocks_at_most(pool.block_size) <= pool.num_blocks

    def has(self, request_id: RequestId) -> bool:
        """Whether the request expects a further output of this scheduler."""
        return request_id in self._requests

    def num_known_prefix_tokens(self, state: RequestState, coming: Set[bytes] = frozenset()) -> int:
        """The tokens at the start of a prompt that this request would not compute here.

        Their blocks are in the prefix index, a running request is about to compute them, or their hashes are in
        `coming`. 0 while no epoch is live.
        """
        if self._epoch is None or state.wants_prompt_logprobs:
            return 0
        return self._epoch.cache.num_known_tokens(state, coming)

    def prefix_hashes(self, state: RequestState) -> Sequence[bytes]:
        """The hashes of the full blocks of a request's tokens; none without a live epoch or without a prefix index."""
        cache = None if self._epoch is None else self._epoch.cache
        if cache is None or not cache.is_enabled:
            return ()
        return cache.chain_of(state, state.num_tokens // cache.block_size)

    @property
    def has_waiting(self) -> bool:
        """Whether a request waits for a slot."""
        return len(self._queue) > 0

    @property
    def num_queued_tokens(self) -> int:
        """The tokens to compute before a request that is submitted now could have its first token.

        Waiting requests count with their new tokens, and running ones with the tokens of their prefill that are left.
        """
        running = self._epoch.slots.occupants() if self._epoch else ()
        left = sum(state.num_tokens - state.num_computed_tokens for state in running if state.is_in_prefill)
        return self._queue.num_new_tokens + left

    def num_computed_by_caller(self) -> dict[str, int]:
        """The tokens computed for each caller so far by all schedulers that share the accounts, by caller's name."""
        return self._shares.num_computed_tokens()

    @property
    def num_requests(self) -> int:
        """The number of requests that expect a further output."""
        return len(self._requests)

    @property
    def counters(self) -> Counters:
        """Numbers that only grow. The caller reads them and never writes them."""
        return self._counters

    @property
    def num_running(self) -> int:
        """Number of requests that have a slot and are not leaving."""
        return self._epoch.num_running if self._epoch else 0

    @property
    def num_unpaused(self) -> int:
        """Number of running requests that get blocks, so that steps must follow."""
        return sum(not state.is_paused for state in self._epoch.slots.running()) if self._epoch else 0

    @property
    def is_any_in_prefill(self) -> bool:
        """Whether a running request has no token yet in this epoch."""
        return self._epoch is not None and self._epoch.slots.is_any_in_prefill()

    def stats(self) -> SchedulerStats:
        """The numbers of this moment."""
        return collect_stats(self._epoch, self._queue, self._counters)

    def check(self) -> None:
        """Assert that no block is lost or in two states; for tests. Costs time in proportion to the pool."""
        if self._epoch is not None:
            self._epoch.check()

    def _plan(self, now: float) -> tuple[Plan, ...]:
        epoch = self._epoch
        if epoch is None or self._is_epoch_condemned:
            return ()
        epoch.extend_short()
        late = admit_waiting(self._queue, epoch, self._suspects, self._paces, self._shares, now)
        self._queue.note_plan()
        if late:
            self._late += [self._fail(state, FailureCode.LATE, LATE_MESSAGE) for state in late]
        return epoch.build_plans()

    def _put_back(self, state: RequestState) -> None:
        """Put a request at the head of the queue with its tokens, because the shard holds nothing of it now."""
        state.forget_shard()
        state.status = RequestStatus.WAITING
        state.order = (0, *state.place_order)
        self._queue.push(state)

    def _forget_media(self, state: RequestState) -> None:
        if self._epoch is not None:
            self._epoch.media.release(state.request_id)

    def _fail(self, state: RequestState, code: FailureCode, message: str) -> RequestOutput:
        del self._requests[state.request_id]
        self._forget_media(state)
        state.status = RequestStatus.CANCELLED
        return failed(state, code, message)

    def _check_pool(self, pool: ShardPool) -> None:
        max_step_tokens = self._config.budget.max_step_tokens
        if max_step_tokens > pool.max_step_tokens:
            raise PoolMismatch(
                f"a step may have {max_step_tokens} tokens, the shard has room for {pool.max_step_tokens} (rule 16)"
            )
        if pool.num_slots > max_step_tokens:
            raise PoolMismatch(f"{pool.num_slots} slots do not fit a step of {max_step_tokens} tokens (rule 16)")
        if self._pool is not None and self._pool.block_size != pool.block_size:
            raise PoolMismatch(f"blocks had {self._pool.block_size} tokens, now they have {pool.block_size} (rule 22)")


def _has_same_places(one: GenerationRequest, other: GenerationRequest) -> bool:
    """Whether both prompts have the same K and V, and the same tenant may share them (rule 12)."""
    return (one.prompt_ids, one.max_new_tokens, one.cache_salt, one.adapter_digest, one.media_spans) == (
        other.prompt_ids,
        other.max_new_tokens,
        other.cache_salt,
        other.adapter_digest,
        other.media_spans,
    )
