"""Tiles cover each query once, and the parts of contexts are as many as the sizes of a batch leave room for."""

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from textmill_shard.triton_kernels.interface import TileMap
from textmill_shard.triton_kernels.tile_map import plan_tiles_plainly
from textmill_shard.triton_kernels.tiles import Tile, attention_tile, count_further, count_tiles

from tests.fakes.kernel_cases import interpreted_kernels

DECODE = attention_tile(itemsize=2, group=4, key_dim=128, value_dim=128, max_query_len=1)
CHUNK = attention_tile(itemsize=2, group=4, key_dim=128, value_dim=128, max_query_len=500)


def plan(lens: list[tuple[int, int]], tile: Tile, *, group: int, padding: int, num_further: int) -> TileMap:
    """Return the plan of plain torch for sequences of so many queries and tokens of context."""
    starts = torch.tensor([0, *accumulate(count for count, _ in lens)], dtype=torch.int32)
    context_lens_R = torch.tensor([length for _, length in lens], dtype=torch.int32)
    num_tokens = int(starts[-1]) + padding
    return plan_tiles_plainly(starts, context_lens_R, tile, group=group, num_tokens=num_tokens, num_further=num_further)


def rows(most_queries: int) -> some.SearchStrategy[list[tuple[int, int]]]:
    row = some.integers(0, most_queries).flatmap(
        lambda count: some.tuples(some.just(count), some.integers(count, count + 3000))
    )
    return some.lists(row, min_size=1, max_size=6)


@given(
    lens=rows(40), padding=some.integers(0, 9), num_rows=some.sampled_from([16, 32, 128]), group=some.integers(1, 16)
)
def test_each_token_lies_in_one_tile_of_its_sequence(
    lens: list[tuple[int, int]], padding: int, num_rows: int, group: int
) -> None:
    tile = Tile(rows=num_rows, places=32, num_warps=4, num_stages=2)
    tiles = plan(lens, tile, group=group, padding=padding, num_further=0)
    starts = [0, *accumulate(count for count, _ in lens)]
    width = tile.num_queries(group)
    assert tiles.sequences.dtype is torch.int32
    assert tiles.parts_before.tolist() == [0] * (len(tiles.sequences) + 1)
    # What the kernel makes of the map, in plain Python.
    covered = []
    stops = [*starts[1:], starts[-1] + padding]  # the padding counts as one more sequence
    for number, sequence in enumerate(tiles.sequences.tolist()):
        first = starts[sequence] + (number - starts[sequence] // width - sequence) * width
        assert first >= starts[sequence]
        covered += [(sequence, token) for token in range(first, min(first + width, stops[sequence]))]
    expected = [
        (row, token)
        for row, (start, stop) in enumerate(zip(starts, stops, strict=True))
        for token in range(start, stop)
    ]
    assert sorted(covered) == expected


@given(lens=rows(40), padding=some.integers(0, 9), num_further=some.integers(1, 50))
def test_no_part_is_longer_than_its_share_and_there_is_room_for_all(
    lens: list[tuple[int, int]], padding: int, num_further: int
) -> None:
    tiles = plan(lens, DECODE, group=4, padding=padding, num_further=num_further)
    before, further = tiles.parts_before.tolist(), tiles.further_tiles.tolist()
    num_tiles = len(tiles.sequences)
    assert len(further) == num_further
    assert before[-1] < num_further  # so that no part is lost
    assert further[: before[-1]] == [tile for tile in range(num_tiles) for _ in range(before[tile + 1] - before[tile])]
    assert set(further[before[-1] :]) == {num_tiles}
    work = sum(-(-count // 4) * length for count, length in lens)
    for tile, sequence in enumerate(tiles.sequences.tolist()):
        num_parts = 1 + before[tile + 1] - before[tile]
        if num_parts == 1 and (sequence == len(lens) or not lens[sequence][0]):
            continue  # padding, and tiles without a query
        assert -(-lens[sequence][1] // num_parts) <= max(work // num_further + 1, DECODE.places) or num_parts == 1


@settings(max_examples=15, deadline=None)
@given(
    lens=some.lists(rows(20), min_size=1, max_size=40).map(lambda several: [row for one in several for row in one]),
    padding=some.integers(0, 9),
    is_chunk=some.booleans(),
    num_further=some.sampled_from([0, 2, 34, 264]),
)
def test_the_kernel_agrees_with_plain_torch(
    lens: list[tuple[int, int]], padding: int, is_chunk: bool, num_further: int
) -> None:
    """More sequences than the kernel reads at a time are among them."""
    tile = CHUNK if is_chunk else DECODE
    starts = torch.tensor([0, *accumulate(count for count, _ in lens)], dtype=torch.int32)
    found = interpreted_kernels(num_further // 2).plan_tiles(
        starts,
        torch.tensor([length for _, length in lens], dtype=torch.int32),
        tile,
        group=4,
        num_kv_heads=1,
        num_tokens=int(starts[-1]) + padding,
    )
    expected = plan(lens, tile, group=4, padding=padding, num_further=len(found.further_tiles))
    assert found.tile == tile
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert found.parts_before.tolist() == expected.parts_before.tolist()
    assert found.further_tiles.tolist() == expected.further_tiles.tolist()


@pytest.mark.parametrize(
    ("lens", "expected"),
    [
        ([1024], [16]),  # of 64 tokens, the smallest part
        ([100_000], [33]),
        ([1024] * 8, [5] * 8),
        ([1024] * 64, [1] * 64),
        ([100_000] + [1024] * 63, [21] + [1] * 63),  # the long context has as many parts as the others are
        ([5000] * 3 + [100_000], [2] * 3 + [29]),
    ],
)
def test_parts_of_contexts_on_an_h100(lens: list[int], expected: list[int]) -> None:
    """With eight key/value heads 33 further parts for each of them make two programs of each multiprocessor."""
    num_tiles = count_tiles(DECODE, group=4, num_tokens=len(lens), num_sequences=len(lens))
    num_further = count_further(num_tiles=num_tiles, num_kv_heads=8, num_multiprocessors=132)
    assert num_further == 33
    tiles = plan([(1, length) for length in lens], DECODE, group=4, padding=0, num_further=num_further)
    parts = tiles.parts_before.diff() + 1
    found = [int(parts[tile]) for tile in first_tiles(tiles)]
    assert found == expected


def first_tiles(tiles: TileMap) -> list[int]:
    sequences = tiles.sequences.tolist()
    return [sequences.index(row) for row in range(max(sequences))]


@pytest.mark.parametrize(
    ("num_tiles", "num_kv_heads", "expected"), [(1, 8, 33), (500, 8, 33), (600, 8, 0), (2, 1, 264), (2, 300, 0)]
)
def test_steps_of_very_many_tiles_cut_no_context(num_tiles: int, num_kv_heads: int, expected: int) -> None:
    assert count_further(num_tiles=num_tiles, num_kv_heads=num_kv_heads, num_multiprocessors=132) == expected


@pytest.mark.parametrize("group", [1, 3, 7, 16, 50, 128])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("width", [64, 80, 128, 256])
@pytest.mark.parametrize("max_query_len", [1, 5, 1000])
def test_a_tile_holds_a_query_of_all_heads_of_a_group(
    group: int, itemsize: int, width: int, max_query_len: int
) -> None:
    tile = attention_tile(itemsize=itemsize, group=group, key_dim=width, value_dim=width, max_query_len=max_query_len)
    assert tile.num_queries(group) >= 1
    assert tile.rows & (tile.rows - 1) == 0
    assert tile.rows >= 16
