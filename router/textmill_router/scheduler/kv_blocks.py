"""The pool of KV blocks: which are free, held, or evictable. The shard has the tensors."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from textmill_router.request import BlockId


class BlockPool:
    """Each block is free, held by one or more requests, or cached: in the prefix index and held by no request.

    Cached blocks are evicted in LRU order. free + held + cached == total at all times. The pool calls `on_evict` when
    a cached block is given away, so that the owner of the index forgets the block.
    """

    def __init__(self, num_blocks: int, on_evict: Callable[[BlockId], None]) -> None:
        self.num_blocks = num_blocks
        self._on_evict = on_evict
        self._free = [BlockId(block) for block in reversed(range(num_blocks))]
        self._ref_counts = [0] * num_blocks
        self._is_indexed = bytearray(num_blocks)
        self._evictable: OrderedDict[BlockId, None] = OrderedDict()  # oldest first

    @property
    def num_free(self) -> int:
        """Number of blocks that hold nothing worth keeping."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Number of blocks that no request holds and that are kept for their content."""
        return len(self._evictable)

    @property
    def num_held(self) -> int:
        """Number of blocks in the table of at least one request."""
        return self.num_blocks - len(self._free) - len(self._evictable)

    @property
    def num_available(self) -> int:
        """Number of blocks that `allocate` could give: free or cached."""
        return len(self._free) + len(self._evictable)

    def can_allocate(self, count: int) -> bool:
        """Whether `allocate(count)` would succeed."""
        return count <= self.num_available

    def allocate(self, count: int) -> list[BlockId]:
        """Take blocks for one writer: free blocks first, then the least recently used of the cached.

        Call only if `can_allocate`.
        """
        assert self.can_allocate(count), (count, self.num_available)
        taken = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._evictable.popitem(last=False)
                self._is_indexed[block] = 0
                self._on_evict(block)
            self._ref_counts[block] = 1
            taken.append(block)
        return taken

    def num_evictable_of(self, blocks: Iterable[BlockId]) -> int:
        """How many of these blocks are cached. Sharing a cached block takes it from `num_available`."""
        return sum(1 for block in blocks if not self._ref_counts[block])

    def share(self, blocks: Iterable[BlockId]) -> None:
        """Add one holder to each of these indexed blocks."""
        for block in blocks:
            assert self._is_indexed[block], block
            if not self._ref_counts[block]:
                del self._evictable[block]
            self._ref_counts[block] += 1

    def release(self, blocks: Sequence[BlockId]) -> None:
        """Take one holder from each block of a table, tail first, so that the LRU evicts children before parents."""
        for block in reversed(blocks):
            count = self._ref_counts[block] - 1
            assert count >= 0, block
            self._ref_counts[block] = count
            if count:
                continue
            if self._is_indexed[block]:
                self._evictable[block] = None
            else:
                self._free.append(block)

    def mark_indexed(self, block: BlockId) -> None:
        """Note that this held block is in the prefix index from now on."""
        assert self._ref_counts[block] > 0, block
        self._is_indexed[block] = 1

    def unmark_indexed(self, block: BlockId) -> None:
        """Note that this block left the prefix index. The block is free as soon as no request holds it."""
        assert self._is_indexed[block], block
        self._is_indexed[block] = 0
        if not self._ref_counts[block]:
            del self._evictable[block]
            self._free.append(block)

    def check(self, tables: Iterable[Sequence[BlockId]]) -> None:
        """Assert that the pool agrees with the block tables of all requests. For tests."""
        counts = [0] * self.num_blocks
        for table in tables:
            for block in table:
                counts[block] += 1
        assert counts == self._ref_counts, "reference counts differ from the tables"
        states = sorted([*self._free, *self._evictable, *(b for b in range(self.num_blocks) if counts[b])])
        assert states == list(range(self.num_blocks)), "a block is lost or in two states"
        assert all(self._is_indexed[block] for block in self._evictable)
        assert not any(self._is_indexed[block] for block in self._free)
