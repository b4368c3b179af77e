"""Tiles cover each query once, and the number of splits depends on the sizes of a batch alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from textmill_shard.triton_kernels.tile_map import map_tiles
from textmill_shard.triton_kernels.tiles import MAX_SPLITS, Tile, attention_tile, num_splits


@given(
    lens=some.lists(some.integers(0, 40), min_size=1, max_size=6),
    padding=some.integers(0, 9),
    rows=some.sampled_from([16, 32, 128]),
    group=some.integers(1, 16),
)
def test_each_token_lies_in_one_tile_of_its_sequence(lens: list[int], padding: int, rows: int, group: int) -> None:
    starts = [0]
    for length in lens:
        starts.append(starts[-1] + length)
    num_tokens = starts[-1] + padding
    tile = Tile(rows=rows, places=32, num_warps=4, num_stages=2)
    tiles = map_tiles(torch.tensor(starts, dtype=torch.int32), tile, group=group, num_tokens=num_tokens)
    width = tile.num_queries(group)
    assert tiles.sequences.dtype is torch.int32
    # What the kernel makes of the map, in plain Python.
    covered = []
    stops = [*starts[1:], num_tokens]  # the padding counts as one more sequence
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


def test_a_map_needs_nothing_from_the_host() -> None:
    """On meta tensors a read of a value raises."""
    starts = torch.empty(9, dtype=torch.int32, device="meta")
    tile = attention_tile(itemsize=2, group=4, key_dim=128, value_dim=128, max_query_len=1)
    assert map_tiles(starts, tile, group=4, num_tokens=8).sequences.shape == (8 // 4 + 8 + 1,)


@pytest.mark.parametrize(
    ("num_tiles", "num_kv_heads", "expected"),
    [
        (1, 8, MAX_SPLITS),  # one sequence: 264 programs are wanted, and 8 x 32 come
        (8, 8, 4),  # 64 programs, and 264 / 64 is just above 4
        (64, 8, 1),
        (300, 8, 1),
        (1, 1, MAX_SPLITS),
    ],
)
def test_splits_of_an_h100(num_tiles: int, num_kv_heads: int, expected: int) -> None:
    assert num_splits(num_tiles=num_tiles, num_kv_heads=num_kv_heads, num_multiprocessors=132) == expected


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
