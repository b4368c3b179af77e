"""Decides how many blocks a request gets, when it gets more, and which request makes room (rules 13 and 14)."""

from collections.abc import Callable, Sequence

from textmill_router.request import BlockId
from textmill_router.scheduler.plan import Extend
from textmill_router.scheduler.prefix_cache import PrefixCache
from textmill_router.scheduler.request_state import NEVER, RequestState, RequestStatus

# A slot with fewer places left than steps that may be under way would starve before its extend arrives.
PREEMPT_BELOW_PLACES = 2


class Grants:
    """Gives blocks to requests before their tokens need them.

    Grants are the flow control of the stream, because the shard never computes past the granted places (rule 3).
    """

    def __init__(self, cache: PrefixCache, *, ahead_tokens: int, regrant_below_tokens: int) -> None:
        assert 1 <= regrant_below_tokens <= ahead_tokens, (regrant_below_tokens, ahead_tokens)
        self._cache = cache
        self._pool = cache.pool
        self._block_size = cache.block_size
        self._ahead_tokens = ahead_tokens
        self._regrant_below_tokens = regrant_below_tokens
        self._short: set[RequestState] = set()

    def can_admit(self, state: RequestState, hits: Sequence[BlockId], num_running: int) -> bool:
        """Whether the first grant of a request leaves one free or evictable block per running request (rule 14)."""
        num_new = self._num_blocks_wanted(state) - len(hits)
        return self._pool.can_allocate(num_new + num_running + self._pool.num_evictable_of(hits))

    def admit(self, state: RequestState, hits: Sequence[BlockId]) -> None:
        """Give the first grant: the blocks of the prefix that was found, then new ones. Call only if `can_admit`."""
        self._pool.share(hits)
        state.block_ids = [*hits, *self._pool.allocate(self._num_blocks_wanted(state) - len(hits))]

    def release(self, state: RequestState) -> None:
        """Take all blocks of a request back, because it leaves or has ended (rule 8)."""
        self._short.discard(state)
        self._pool.release(state.block_ids)
        state.block_ids = []

    def watch(self, state: RequestState) -> None:
        """Set the number of tokens at which to look at a request again, and note a request whose places run short."""
        if state.request.beams is not None:
            state.watch_at = NEVER  # has all its blocks, and only those of the prompt have lasting content
            return
        num_places = len(state.block_ids) * self._block_size
        watch_at = state.max_places + 2  # one token more than it may ever have
        if num_places < state.max_places:
            regrant_at = num_places - self._regrant_below_tokens + 1
            watch_at = min(watch_at, regrant_at)
            if state.num_tokens >= regrant_at:
                self._short.add(state)
        if self._cache.is_enabled:
            watch_at = min(watch_at, (state.num_indexed_blocks + 1) * self._block_size + 1)
        state.watch_at = watch_at

    def extend_short(
        self, running: Callable[[], list[RequestState]], preempt: Callable[[RequestState], None]
    ) -> list[Extend]:
        """Give blocks to the requests whose places run short, in the order (priority, arrival).

        When no block is free and a request is about to starve, the last running request in that order is preempted.
        The victim may be the starving request itself. The cost of computing the victim again plays no part. A paused
        request gets nothing, keeps its blocks and starves, until its reader has caught up.
        """
        if not self._short:
            return []
        extends = []
        for state in sorted(self._short, key=_place_order):
            if state.is_paused:
                continue
            while self._is_about_to_starve(state) and not self._pool.can_allocate(1):
                preempt(max(running(), key=_place_order))
            if state.status is not RequestStatus.RUNNING:
                continue
            count = min(self._num_blocks_wanted(state) - len(state.block_ids), self._pool.num_available)
            if count == 0:
                continue
            granted = self._pool.allocate(count)
            state.block_ids.extend(granted)
            assert state.slot is not None
            extends.append(Extend(slot=state.slot, request_id=state.request_id, block_ids=tuple(granted)))
            self._short.discard(state)
            self.watch(state)
        return extends

    def _num_blocks_wanted(self, state: RequestState) -> int:
        if state.request.beams is not None:
            return state.num_blocks_at_most(self._block_size)
        num_places = min(state.num_tokens + self._ahead_tokens, state.max_places)
        return -(-num_places // self._block_size)

    def _is_about_to_starve(self, state: RequestState) -> bool:
        num_left = len(state.block_ids) * self._block_size - state.num_tokens
        return state.status is RequestStatus.RUNNING and num_left < PREEMPT_BELOW_PLACES


def _place_order(state: RequestState) -> tuple[int, float, int]:
    return state.place_order
