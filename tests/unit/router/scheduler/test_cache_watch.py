"""A watcher of the prefix index can follow it: what it was told is what the index holds, at every time."""

import random
from collections.abc import Sequence

import pytest
from textmill_router.request import BlockId, GenerationRequest, RequestId, token_array
from textmill_router.scheduler.prefix_cache import PrefixCache, block_hash, root_hash
from textmill_router.scheduler.request_state import RequestState

BLOCK = 4


class Follower:
    """Keeps hashes with their tokens, and computes each hash again from its parent and its tokens."""

    def __init__(self) -> None:
        self.known: dict[bytes, bytes] = {}

    def on_stored(
        self, request: GenerationRequest, parent: bytes | None, digests: Sequence[bytes], packed_ids: bytes
    ) -> None:
        size = len(packed_ids) // len(digests)
        above = root_hash(request.cache_salt) if parent is None else parent
        assert parent is None or parent in self.known
        for number, digest in enumerate(digests):
            own = packed_ids[number * size : (number + 1) * size]
            assert digest == block_hash(above, own)
            assert digest not in self.known
            self.known[digest] = own
            above = digest

    def on_removed(self, digest: bytes) -> None:
        del self.known[digest]

    def on_cleared(self) -> None:
        self.known.clear()


@pytest.mark.parametrize("seed", range(5))
def test_follower_knows_what_the_index_holds(seed: int) -> None:
    draw = random.Random(seed)
    follower = Follower()
    cache = PrefixCache(num_blocks=12, block_size=BLOCK, watcher=follower)
    held: list[RequestState] = []
    for number in range(200):
        tokens = [draw.randrange(2) for _ in range(draw.randrange(BLOCK, 6 * BLOCK))]
        state = RequestState(GenerationRequest(RequestId(number), token_array(tokens), 1, 0.0))
        hits = cache.lookup(state)
        needed = -(-len(tokens) // BLOCK) - len(hits)
        cache.pool.share(hits)
        while held and not cache.pool.can_allocate(needed):
            cache.pool.release(held.pop(0).block_ids)
        state.block_ids = [*hits, *cache.pool.allocate(needed)]
        state.num_indexed_blocks = len(hits)
        state.num_computed_tokens = draw.randrange(len(hits) * BLOCK, len(tokens) + 1)
        cache.index_computed(state)
        held.append(state)
        if draw.random() < 0.1 and follower.known:
            cache.forget([draw.choice(list(follower.known))])
        assert len(follower.known) == len(cache)
    assert follower.known


def test_nobody_is_told_where_nothing_is_shared() -> None:
    follower = Follower()
    cache = PrefixCache(num_blocks=4, block_size=BLOCK, is_enabled=False, watcher=follower)
    state = RequestState(GenerationRequest(RequestId(1), token_array([1] * BLOCK), 1, 0.0))
    state.block_ids = [BlockId(0)]
    state.num_computed_tokens = BLOCK
    cache.index_computed(state)
    assert follower.known == {}
