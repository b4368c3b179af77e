"""Finds blocks that already hold the K and V of a prompt's prefix (rules 9 to 12 in docs/wire.md)."""

from collections.abc import Sequence, Set
from hashlib import blake2b

from textmill_router.request import BlockId, GenerationRequest
from textmill_router.scheduler.cache_watch import CacheWatcher
from textmill_router.scheduler.kv_blocks import BlockPool
from textmill_router.scheduler.request_state import RequestState

HASH_BYTES = 16
_LOOKUP_BLOCKS = 16  # hashed at a time
_LONG_ROPE = b"long rope"  # at most 16 bytes
_ROOT_PERSON = b"textmill-prefix"  # at most 16 bytes; keeps roots apart from block hashes
_ADAPTER_PERSON = b"textmill-adapter"  # 16 bytes; keeps roots with an adapter apart from those of the base model


def root_hash(cache_salt: bytes, *, is_long_rope: bool = False, adapter_digest: bytes = b"") -> bytes:
    """The parent hash of a first block: everything besides token ids that decides K and V, or who may share them.

    `adapter_digest` is empty for the base model, and else as long as every other digest, so that no digest and salt
    together read as another digest and salt. The name of an adapter is left out, because the weights decide K and V.
    """
    side = _LONG_ROPE if is_long_rope else b""
    person = _ADAPTER_PERSON if adapter_digest else _ROOT_PERSON
    return blake2b(adapter_digest + cache_salt, digest_size=HASH_BYTES, person=person, salt=side).digest()


def block_hash(parent: bytes, content: bytes) -> bytes:
    """The hash of a full block and of all blocks before it, because the parent's hash goes into it.

    `content` holds the ids of the block and, behind them, what tells the images in the block apart
    (`RequestState.packed_media`).
    """
    return blake2b(parent + content, digest_size=HASH_BYTES).digest()


class PrefixCache:
    """The index of one epoch from block hash to block. It decides which blocks may be shared; `BlockPool` counts.

    A block enters the index once all its places are computed. The index also knows the hashes of blocks that running
    requests are about to fill, because a request that would read two or more of them should wait (rule 11). `watcher`
    is told each change of the index.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        is_enabled: bool = True,
        rope_border: int = 0,
        watcher: CacheWatcher | None = None,
    ) -> None:
        self.is_enabled = is_enabled  # False: nothing is ever found, so nothing is indexed
        self.pool = BlockPool(num_blocks, on_evict=self._forget_block)
        self.block_size = block_size
        self._rope_border = rope_border
        self._watcher = watcher
        self._blocks: dict[bytes, BlockId] = {}
        self._hashes: dict[BlockId, bytes] = {}
        self._parents: dict[bytes, bytes | None] = {}  # of indexed hashes; None = first block
        self._writers: dict[bytes, RequestState] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def chain_of(self, state: RequestState, num_blocks: int) -> list[bytes]:
        """The request's chain of block hashes, at least `num_blocks` long. The tokens must fill that many blocks."""
        chain = state.chain
        if len(chain) < num_blocks:
            parent = chain[-1] if chain else self._root_of(state.request)
            packed = state.packed_ids(len(chain) * self.block_size, num_blocks * self.block_size)
            block_bytes = len(packed) // (num_blocks - len(chain))
            for start in range(0, len(packed), block_bytes):
                content = packed[start : start + block_bytes]
                if state.media_spans:
                    first = len(chain) * self.block_size
                    content += state.packed_media(first, first + self.block_size)
                parent = block_hash(parent, content)
                chain.append(parent)
        return chain

    def _root_of(self, request: GenerationRequest) -> bytes:
        return root_hash(
            request.cache_salt,
            is_long_rope=request.takes_long_rope(self._rope_border),
            adapter_digest=request.adapter_digest,
        )

    def lookup(self, state: RequestState) -> list[BlockId]:
        """The blocks that hold the request's prefix, in order. At least one token is left to compute (rule 10)."""
        if not self.is_enabled:
            return []
        max_hits = (state.num_tokens - 1) // self.block_size
        found: list[BlockId] = []
        while len(found) < max_hits:
            # Hash some blocks at a time: a request that finds nothing, or is held, need not be hashed to its end.
            num_known = len(found)
            num_wanted = min(num_known + _LOOKUP_BLOCKS, max_hits)
            for digest in self.chain_of(state, num_wanted)[num_known:num_wanted]:
                block = self._blocks.get(digest)
                if block is None:
                    return found
                found.append(block)
        return found

    def num_known_tokens(self, state: RequestState, coming: Set[bytes]) -> int:
        """The tokens at the start of the request in blocks that are indexed, are being written, or are in `coming`."""
        if not self.is_enabled:
            return 0
        max_hits = (state.num_tokens - 1) // self.block_size
        num_known = 0
        while num_known < max_hits:
            num_wanted = min(num_known + _LOOKUP_BLOCKS, max_hits)
            for digest in self.chain_of(state, num_wanted)[num_known:num_wanted]:
                if digest not in self._blocks and digest not in self._writers and digest not in coming:
                    return num_known * self.block_size
                num_known += 1
        return num_known * self.block_size

    def hold_hash(self, state: RequestState, num_hits: int) -> bytes | None:
        """The hash that a request waits for, if running requests write the two blocks after its hits (rule 11)."""
        if not self.is_enabled or num_hits + 2 > (state.num_tokens - 1) // self.block_size:
            return None
        chain = self.chain_of(state, num_hits + 2)
        second = chain[num_hits + 1]
        return second if second in self._writers and chain[num_hits] in self._writers else None

    def is_being_written(self, digest: bytes) -> bool:
        """Whether a running request is about to fill the block of this hash."""
        return digest in self._writers

    def start_writing(self, state: RequestState) -> None:
        """Note the hashes of the full blocks that an admitted request will compute."""
        if not self.is_enabled:
            return
        num_full = state.num_tokens // self.block_size
        for digest in self.chain_of(state, num_full)[state.num_indexed_blocks : num_full]:
            if digest not in self._blocks:
                self._writers.setdefault(digest, state)

    def stop_writing(self, state: RequestState) -> None:
        """Forget the blocks that a leaving request was about to compute, because it will never index them."""
        for digest in state.chain[state.num_indexed_blocks :]:
            if self._writers.get(digest) is state:
                del self._writers[digest]

    def index_computed(self, state: RequestState) -> None:
        """Index each block whose places are all computed (rule 9). Of two blocks with equal content the first stays."""
        if not self.is_enabled:
            return
        num_full = state.num_computed_tokens // self.block_size
        chain = self.chain_of(state, num_full)
        fresh: list[int] = []
        for index in range(state.num_indexed_blocks, num_full):
            digest = chain[index]
            self._writers.pop(digest, None)
            if digest not in self._blocks:
                fresh.append(index)
                block = state.block_ids[index]
                self._blocks[digest] = block
                self._hashes[block] = digest
                self._parents[digest] = chain[index - 1] if index else None
                self.pool.mark_indexed(block)
        state.num_indexed_blocks = num_full
        if fresh and self._watcher is not None:
            self._tell_stored(state, fresh, self._watcher)

    def _tell_stored(self, state: RequestState, fresh: Sequence[int], watcher: CacheWatcher) -> None:
        """Tell the blocks that entered the index, one run of neighbours at a time."""
        start = 0
        for place in range(1, len(fresh) + 1):
            if place < len(fresh) and fresh[place] == fresh[place - 1] + 1:
                continue
            first, end = fresh[start], fresh[place - 1] + 1
            packed = state.packed_ids(first * self.block_size, end * self.block_size)
            watcher.on_stored(state.request, state.chain[first - 1] if first else None, state.chain[first:end], packed)
            start = place

    def forget(self, digests: Sequence[bytes]) -> None:
        """Take blocks with bad content out of the index, and all blocks whose prefix contains them (rule 19)."""
        bad = set(digests)
        grows = True
        while grows:
            children = {child for child, parent in self._parents.items() if parent in bad and child not in bad}
            bad |= children
            grows = bool(children)
        for digest in bad:
            block = self._blocks.get(digest)
            if block is not None:
                self._forget_block(block)
                self.pool.unmark_indexed(block)

    def _forget_block(self, block: BlockId) -> None:
        digest = self._hashes.pop(block)
        del self._blocks[digest]
        del self._parents[digest]
        if self._watcher is not None:
            self._watcher.on_removed(digest)
