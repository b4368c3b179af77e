"""Slots, blocks, prefix index and plan numbers of one stream.

An epoch is discarded when the stream ends; the next stream gets a new `Epoch`.
"""

from dataclasses import dataclass

from textmill_router.request import BlockId
from textmill_router.scheduler.cache_watch import CacheWatcher
from textmill_router.scheduler.config import SchedulerConfig
from textmill_router.scheduler.grants import Grants
from textmill_router.scheduler.media_gate import MediaGate
from textmill_router.scheduler.plan import Admit, Drop, Plan, ShardPool
from textmill_router.scheduler.plan_builder import PlanBuilder
from textmill_router.scheduler.prefix_cache import PrefixCache
from textmill_router.scheduler.request_state import RequestState, RequestStatus
from textmill_router.scheduler.slots import Seats


@dataclass(slots=True)
class Counters:
    """Numbers of all epochs together; they only grow."""

    num_preemptions: int = 0
    num_readmissions: int = 0  # of requests whose slot was lost with the shard
    num_recomputed_tokens: int = 0  # K and V of these requests that were lost and not found again
    num_starvations: int = 0
    num_prefix_hit_tokens: int = 0
    num_prefix_lookup_tokens: int = 0
    num_prefill_tokens: int = 0
    num_output_tokens: int = 0
    num_steps: int = 0
    num_epochs: int = 0


class Epoch:
    """Gives slots to requests and takes slots back, and writes each change into the next plan."""

    def __init__(
        self, pool: ShardPool, config: SchedulerConfig, counters: Counters, watcher: CacheWatcher | None = None
    ) -> None:
        self.pool = pool
        # The router's own count, because a shard that starts again counts its epochs from 1 again.
        self.number = counters.num_epochs
        self.counters = counters
        self.slots = Seats(pool.num_slots)
        self.cache = PrefixCache(
            num_blocks=pool.num_blocks,
            block_size=pool.block_size,
            is_enabled=config.prefix_caching and pool.can_share_prefixes,
            rope_border=pool.rope_border,
            watcher=watcher,
        )
        self.grants = Grants(
            self.cache,
            ahead_tokens=config.grant_ahead_tokens,
            regrant_below_tokens=config.regrant_below_tokens,
        )
        self.media = MediaGate(max_bytes=pool.media_cache_bytes, row_bytes=pool.media_row_bytes)
        self.num_running = 0
        self._builder = PlanBuilder(config.budget)
        self._max_chunk_tokens = config.budget.max_chunk_tokens
        self._step_prefill_tokens = min(config.budget.max_prefill_tokens, config.budget.max_step_tokens)
        self._prefill_backlog = 0  # tokens of the next chunks of all prefills
        self._to_drop: list[RequestState] = []

    @property
    def num_plans(self) -> int:
        """The number of the last plan that was built."""
        return self._builder.num_plans

    def wants_prefill(self) -> bool:
        """Whether the next chunks of the admitted prefills come to less than the budget of two steps (rule 16)."""
        return self._prefill_backlog < 2 * self._step_prefill_tokens

    def find_hits(self, state: RequestState) -> list[BlockId]:
        """The blocks that a request could share: no block while it wants prompt log-probabilities (rule 17)."""
        return [] if state.wants_prompt_logprobs else self.cache.lookup(state)

    def seat(self, state: RequestState, hits: list[BlockId], now: float) -> None:
        """Admit a request with the blocks that were found for it. Call only if a slot is free and the grant fits."""
        request = state.request
        copied_block_id, num_copied_tokens = self._find_copy(state, hits)
        num_cached_tokens = len(hits) * self.pool.block_size + num_copied_tokens
        if not state.wants_prompt_logprobs:
            self.counters.num_prefix_lookup_tokens += state.num_tokens
            self.counters.num_prefix_hit_tokens += num_cached_tokens
        is_first_here = state.epoch != self.number
        if is_first_here:
            state.epoch = self.number
            state.num_outputs_at_epoch = len(state.output_ids)
        if state.was_lost:
            self.counters.num_readmissions += 1
            self.counters.num_recomputed_tokens += max(0, state.num_lost_tokens - num_cached_tokens)
            state.was_lost = False
        state.num_foreign_blocks = len(hits) if is_first_here else min(len(hits), state.num_foreign_blocks)
        effort = state.effort
        if effort.admitted_s < 0.0:
            effort.admitted_s = now
            effort.num_cached_tokens = num_cached_tokens
        state.status = RequestStatus.RUNNING
        state.hold_hash = None
        state.leader = None
        state.num_computed_tokens = num_cached_tokens
        state.num_indexed_blocks = len(hits)
        state.watch_at = 0  # look at the request when its first token comes
        if state.media_spans:
            self.media.seat(state)
        self.slots.seat(state)
        self.grants.admit(state, hits)
        self.cache.start_writing(state)
        self.num_running += 1
        self.note_prefill(state)
        assert state.slot is not None
        self._builder.admit(
            Admit(
                request=request,
                slot=state.slot,
                output_ids=state.output_ids[:],
                num_cached_tokens=num_cached_tokens,
                block_ids=tuple(state.block_ids),
                prompt_logprobs_from=state.next_prompt_logprob if state.wants_prompt_logprobs else None,
                is_long_rope=request.takes_long_rope(self.pool.rope_border),
                copied_block_id=copied_block_id,
                caller=0 if state.account is None else state.account.number,
                caller_weight=1.0 if state.account is None else state.account.weight,
            )
        )

    def num_cached_tokens(self, state: RequestState, hits: list[BlockId]) -> int:
        """The tokens that a request would not compute if it were seated with these blocks."""
        return len(hits) * self.pool.block_size + self._find_copy(state, hits)[1]

    def _find_copy(self, state: RequestState, hits: list[BlockId]) -> tuple[BlockId | None, int]:
        """The leader's block with the end of the prompt, and how many of its places to copy (rule 10).

        One token is left to compute, because the model must read a token to give logits.
        """
        leader = state.leader
        num_whole, num_copied = divmod(len(state.request.prompt_ids) - 1, self.pool.block_size)
        if (
            leader is None
            or state.wants_prompt_logprobs
            or leader.status is not RequestStatus.RUNNING
            or leader.slot is None
            or leader.num_computed_tokens < len(state.request.prompt_ids)
            or not self.cache.is_enabled
            or num_whole != len(hits)
            or num_copied == 0
        ):
            return None, 0
        return leader.block_ids[num_whole], num_copied

    def note_prefill(self, state: RequestState) -> None:
        """Count the tokens of the next chunk of a request whose prefill has advanced."""
        least = self._uncut_end(state) - state.num_computed_tokens
        share = max(min(state.num_tokens - state.num_computed_tokens, self._max_chunk_tokens), least)
        self._prefill_backlog += share - state.prefill_share
        state.prefill_share = share

    def _uncut_end(self, state: RequestState) -> int:
        """The token up to which the next chunk goes at least, however small chunks are (rule 16)."""
        num_computed = state.num_computed_tokens
        if self.pool.uncut_prompts:
            return max(len(state.request.prompt_ids), num_computed)
        if self.pool.uncut_spans:
            ends = (span.end for span in state.media_spans if span.start <= num_computed < span.end)
            return next(ends, num_computed)
        return max(state.request.num_encoder_tokens, num_computed)  # the text that an encoder reads

    def end_prefill(self, state: RequestState) -> None:
        """Count no further chunk for a request that has a token or leaves."""
        self._prefill_backlog -= state.prefill_share
        state.prefill_share = 0

    def leave(self, state: RequestState, status: RequestStatus) -> None:
        """Make a running request leave: its blocks are free at once, its slot when the drop is acknowledged."""
        assert state.status is RequestStatus.RUNNING, state
        self._give_back(state)
        state.status = status
        self._to_drop.append(state)

    def end(self, state: RequestState) -> None:
        """Free the slot of a request that the shard has ended (rule 6)."""
        if state.status is RequestStatus.RUNNING:
            self._give_back(state)
        self.slots.free(state)

    def extend_short(self) -> None:
        """Grant blocks to the requests whose places run short; may preempt another request (rule 14)."""
        for extend in self.grants.extend_short(self.slots.running, self._preempt):
            self._builder.extend(extend)

    def build_plans(self) -> tuple[Plan, ...]:
        """The changes since the last call as numbered plans."""
        for state in self._to_drop:
            if state.slot is not None:  # the request may have ended since
                self._builder.drop(Drop(slot=state.slot, request_id=state.request_id))
        self._to_drop.clear()
        plans = self._builder.build()
        seats = self.slots.seats
        for plan in plans:
            for drop in plan.drops:
                leaving = seats[drop.slot]
                assert leaving is not None
                self.slots.drop_sent(leaving, plan.number)
            for admit in plan.admits:
                seated = seats[admit.slot]
                assert seated is not None
                seated.admit_plan = plan.number
        return plans

    def check(self) -> None:
        """Assert that the block pool agrees with the block tables. For tests."""
        self.cache.pool.check(state.block_ids for state in self.slots.occupants())

    def _preempt(self, state: RequestState) -> None:
        self.counters.num_preemptions += 1
        state.effort.num_preemptions += 1
        self.leave(state, RequestStatus.PREEMPTED)

    def _give_back(self, state: RequestState) -> None:
        self.num_running -= 1
        state.charge_outputs()
        self.end_prefill(state)
        if state.media_spans:
            self.media.release(state.request_id)
        self.cache.stop_writing(state)
        self.grants.release(state)
