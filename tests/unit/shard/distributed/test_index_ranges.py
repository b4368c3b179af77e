"""Ranks get whole heads and even parts, in dimensions of one part and of several."""

import pytest
from textmill_shard.distributed.index_ranges import Heads, IndexRange, Unit, even_range, runs_of
from textmill_shard.distributed.parallel import TensorParallel

Q, KV, INDEX, PAIR = Unit.QUERY, Unit.KEY_VALUE, Unit.INDEX, Unit.PAIR


def test_ranks_beyond_the_key_value_heads_share_them_in_order() -> None:
    heads = Heads(num_heads=8, num_kv_heads=2)
    ranges = [heads.kv_range(TensorParallel(rank, 4)) for rank in range(4)]
    assert ranges == [IndexRange(0, 1), IndexRange(0, 1), IndexRange(1, 2), IndexRange(1, 2)]
    assert [size for size in range(1, 9) if heads.fits(size)] == [1, 2, 4, 8]


def test_uneven_sizes_are_covered_without_gaps() -> None:
    ranges = [even_range(10, TensorParallel(rank, 3)) for rank in range(3)]
    assert ranges == [IndexRange(0, 3), IndexRange(3, 6), IndexRange(6, 10)]


@pytest.mark.parametrize(
    ("size", "units", "rank", "world_size", "expected"),
    [
        # Four query heads and two key/value heads, each 10 wide: query, key and value behind one another.
        (80, (Q, KV, KV), 0, 2, [(0, 20), (40, 50), (60, 70)]),
        (80, (Q, KV, KV), 1, 2, [(20, 40), (50, 60), (70, 80)]),
        (80, (Q, KV, KV), 2, 4, [(20, 30), (50, 60), (70, 80)]),  # ranks 2 and 3 hold one key/value head
        # Gate and up, each 7 wide.
        (14, (INDEX, INDEX), 0, 2, [(0, 3), (7, 10)]),
        (14, (INDEX, INDEX), 1, 2, [(3, 7), (10, 14)]),
        # Gate and up of each of 7 indices side by side.
        (14, (PAIR,), 0, 2, [(0, 6)]),
        (14, (PAIR,), 1, 2, [(6, 14)]),
        (4, (Q,), 1, 2, [(2, 4)]),  # a number for each head
    ],
)
def test_each_part_of_a_dimension_is_divided_by_itself(
    size: int, units: tuple[Unit, ...], rank: int, world_size: int, expected: list[tuple[int, int]]
) -> None:
    found = runs_of(size, units, Heads(num_heads=4, num_kv_heads=2), TensorParallel(rank, world_size))
    assert [(run.start, run.stop) for run in found] == expected
