"""The pool of KV blocks: who holds them, which are free, which may be evicted. Blocks are only numbers here."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from textmill_router.request import BlockId


class BlockPool:
    """Each block is free, held (by one or more requests) or cached (indexed, held by nobody, evictable in LRU order).

    free + held + cached == total, always. `on_evict` tells the owner of the index that a block loses its content.
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
        """Blocks without content worth keeping."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks kept for their content only."""
        return len(self._evictable)

    @property
    def num_held(self) -> int:
        """Blocks in the table of at least one request."""
        return self.num_blocks - len(self._free) - len(self._evictable)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could give: free or evictable."""
        return len(self._free) + len(self._evictable)

    def can_allocate(self, count: int) -> bool:
        """Whether `allocate(count)` would succeed."""
        return count <= self.num_available

    def allocate(self, count: int) -> list[BlockId]:
        """Take blocks for one writer: free ones first, then the least recently used of the cached. Ask first."""
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
        """How many of these blocks nobody holds: sharing them takes them from `num_available`."""
        return sum(1 for block in blocks if not self._ref_counts[block])

    def share(self, blocks: Iterable[BlockId]) -> None:
        """Add one holder to each of these indexed blocks."""
        for block in blocks:
            assert self._is_indexed[block], block
            if not self._ref_counts[block]:
                del self._evictable[block]
            self._ref_counts[block] += 1

    def release(self, blocks: Sequence[BlockId]) -> None:
        """Take one holder from each block of a table, tail first, so that the LRU drops no parent before its child."""
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
        """The content of this held block can be found from now on."""
        assert self._ref_counts[block] > 0, block
        self._is_indexed[block] = 1

    def unmark_indexed(self, block: BlockId) -> None:
        """The content of this block cannot be found any more; it is free as soon as nobody holds it."""
        assert self._is_indexed[block], block
        self._is_indexed[block] = 0
        if not self._ref_counts[block]:
            del self._evictable[block]
            self._free.append(block)

    def check(self, tables: Iterable[Sequence[BlockId]]) -> None:
        """Compare the pool with the block tables of all requests that hold any; a difference is a bug of ours."""
        counts = [0] * self.num_blocks
        for table in tables:
            for block in table:
                counts[block] += 1
        assert counts == self._ref_counts, "reference counts differ from the tables"
        states = sorted([*self._free, *self._evictable, *(b for b in range(self.num_blocks) if counts[b])])
        assert states == list(range(self.num_blocks)), "a block is lost or in two states"
        assert all(self._is_indexed[block] for block in self._evictable)
        assert not any(self._is_indexed[block] for block in self._free)
