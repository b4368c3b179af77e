"""Which indices of a dimension belong to a rank: whole attention heads, or an even part of an inner width."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from textmill_shard.distributed.parallel import TensorParallel


@dataclass(frozen=True, slots=True)
class IndexRange:
    """Indices start .. stop - 1 of a dimension."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def scaled(self, width: int, offset: int = 0) -> "IndexRange":
        """Return the range of as many runs of `width` indices, behind `offset` indices."""
        return IndexRange(offset + self.start * width, offset + self.stop * width)


@dataclass(frozen=True, slots=True)
class Heads:
    """The numbers of attention heads of the whole model."""

    num_heads: int
    num_kv_heads: int

    def fits(self, world_size: int) -> bool:
        divides_kv = self.num_kv_heads % world_size == 0 or world_size % self.num_kv_heads == 0
        return self.num_heads % world_size == 0 and divides_kv

    def kv_range(self, parallel: TensorParallel) -> IndexRange:
        """Return the key/value heads of this rank. With fewer such heads than ranks, some ranks hold the same head."""
        if self.num_kv_heads >= parallel.world_size:
            return even_range(self.num_kv_heads, parallel)
        head = parallel.rank * self.num_kv_heads // parallel.world_size
        return IndexRange(head, head + 1)


def even_range(size: int, parallel: TensorParallel) -> IndexRange:
    """Return the part of `size` indices that belongs to this rank; the parts differ by at most one index."""
    return IndexRange(size * parallel.rank // parallel.world_size, size * (parallel.rank + 1) // parallel.world_size)


class Unit(Enum):
    """What must not be divided between two ranks in a part of a dimension."""

    QUERY = "query head"
    KEY_VALUE = "key/value head"
    INDEX = "index"
    PAIR = "two neighbours"


def runs_of(size: int, units: Sequence[Unit], heads: Heads, parallel: TensorParallel) -> tuple[IndexRange, ...]:
    """Return the indices of this rank in a dimension that is made up of parts, such as query, key and value.

    Parts of heads are as wide as their number of heads says. Parts of indices or pairs are equally wide.
    """
    counts = [_num_heads(unit, heads) for unit in units]
    num_heads = sum(count or 0 for count in counts)
    width = size // num_heads if num_heads else size // len(units)
    runs = []
    start = 0
    for unit, count in zip(units, counts, strict=True):
        if unit is Unit.QUERY:
            runs.append(even_range(heads.num_heads, parallel).scaled(width, start))
        elif unit is Unit.KEY_VALUE:
            runs.append(heads.kv_range(parallel).scaled(width, start))
        elif unit is Unit.PAIR:
            runs.append(even_range(width // 2, parallel).scaled(2, start))
        else:
            runs.append(even_range(width, parallel).scaled(1, start))
        start += width * (count or 1)
    assert start == size, (size, units)
    return tuple(runs)


def _num_heads(unit: Unit, heads: Heads) -> int | None:
    if unit is Unit.QUERY:
        return heads.num_heads
    return heads.num_kv_heads if unit is Unit.KEY_VALUE else None
