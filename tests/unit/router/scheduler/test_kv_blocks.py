import pytest
from textmill_router.request import BlockId
from textmill_router.scheduler.kv_blocks import BlockPool


def make_pool(num_blocks: int = 4) -> tuple[BlockPool, list[int]]:
    evicted: list[int] = []
    return BlockPool(num_blocks, on_evict=evicted.append), evicted


def counts(pool: BlockPool) -> tuple[int, int, int]:
    return pool.num_free, pool.num_held, pool.num_cached


def test_allocate_takes_free_blocks_and_asking_has_no_effect():
    pool, _ = make_pool()
    assert pool.can_allocate(4)
    assert not pool.can_allocate(5)
    table = pool.allocate(3)
    assert len(set(table)) == 3
    assert counts(pool) == (1, 3, 0)
    pool.check([table])


def test_allocate_beyond_the_pool_is_our_bug():
    pool, _ = make_pool()
    with pytest.raises(AssertionError):
        pool.allocate(5)
    assert counts(pool) == (4, 0, 0)


def test_released_blocks_are_free_unless_indexed():
    pool, _ = make_pool()
    table = pool.allocate(2)
    pool.mark_indexed(table[0])
    pool.release(table)
    assert counts(pool) == (3, 0, 1)
    pool.check([])


def test_rule_12_eviction_takes_the_tail_of_a_released_table_first():
    pool, evicted = make_pool()
    table = pool.allocate(4)
    for block in table:
        pool.mark_indexed(block)
    pool.release(table)
    pool.allocate(3)
    assert evicted == [table[3], table[2], table[1]]


def test_free_blocks_are_taken_before_cached_ones():
    pool, evicted = make_pool()
    table = pool.allocate(1)
    pool.mark_indexed(table[0])
    pool.release(table)
    pool.allocate(3)
    assert evicted == []
    assert pool.allocate(1) == table
    assert evicted == table


def test_a_shared_block_is_held_until_its_last_holder_leaves():
    pool, _ = make_pool()
    table = pool.allocate(2)
    pool.mark_indexed(table[0])
    assert pool.num_evictable_of(table[:1]) == 0
    pool.share(table[:1])
    pool.release(table)
    assert counts(pool) == (3, 1, 0)
    pool.release(table[:1])
    assert counts(pool) == (3, 0, 1)
    assert pool.num_evictable_of(table[:1]) == 1
    pool.share(table[:1])
    assert counts(pool) == (3, 1, 0)


def test_rule_10_only_indexed_blocks_can_be_shared():
    pool, _ = make_pool()
    table = pool.allocate(1)
    with pytest.raises(AssertionError):
        pool.share(table)


@pytest.mark.parametrize("is_held", [True, False])
def test_a_block_without_index_is_free_once_nobody_holds_it(is_held: bool):
    pool, _ = make_pool()
    table = pool.allocate(1)
    pool.mark_indexed(table[0])
    if not is_held:
        pool.release(table)
    pool.unmark_indexed(table[0])
    assert counts(pool) == ((3, 1, 0) if is_held else (4, 0, 0))
    pool.check([table] if is_held else [])


def test_releasing_twice_is_our_bug():
    pool, _ = make_pool()
    table = pool.allocate(1)
    pool.release(table)
    with pytest.raises(AssertionError):
        pool.release(table)


def test_check_sees_a_table_that_the_pool_does_not_know():
    pool, _ = make_pool()
    with pytest.raises(AssertionError):
        pool.check([[BlockId(0)]])
