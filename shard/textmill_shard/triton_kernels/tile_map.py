"""The tiles of the attention kernel and the parts of contexts, in plain torch, with which `plan_tiles` must agree.

Sequence r begins with the tile `query_starts[r] // queries of a tile + r`. So each sequence has at least the tiles that
its queries need, the number of tiles follows from the sizes of the batch alone, and some tiles stay empty.

A context is cut into parts, each for a program of its own, so that neither few sequences nor one long context among
short ones leaves multiprocessors idle. The number of programs follows from the sizes of the batch alone, because a
recorded CUDA graph is replayed with other lengths: one for each tile, and X for further parts. A part is as long as
all contexts together divided by X, so that no more than X further parts come about.
"""

# R sequences, X further parts

from itertools import accumulate

import torch

from textmill_shard.triton_kernels.interface import TileMap
from textmill_shard.triton_kernels.tiles import Tile, count_tiles, least_part


def plan_tiles_plainly(
    query_starts: torch.Tensor,
    context_lens_R: torch.Tensor,
    tile: Tile,
    *,
    group: int,
    num_tokens: int,
    num_further: int,
) -> TileMap:
    """Return the map for sequences that begin at `query_starts` (`[R + 1]` int32). Reads numbers on the host.

    Without further parts no context is cut.
    """
    num_queries = tile.num_queries(group)
    starts, lens = query_starts.tolist(), context_lens_R.tolist()
    num_tiles = count_tiles(tile, group=group, num_tokens=num_tokens, num_sequences=len(lens))
    first_tiles = [*(start // num_queries + number for number, start in enumerate(starts)), num_tiles]
    sequences = [row for row in range(len(starts)) for _ in range(first_tiles[row + 1] - first_tiles[row])]
    full = [-(-(starts[row + 1] - starts[row]) // num_queries) for row in range(len(lens))]  # tiles with queries
    part_len = 0
    if num_further:
        whole = sum(count * length for count, length in zip(full, lens, strict=True))
        part_len = max(whole // num_further + 1, least_part(tile))
    further = [0] * num_tiles
    for row, length in enumerate(lens):
        for number in range(full[row] if part_len else 0):
            further[first_tiles[row] + number] = (max(length, 1) - 1) // part_len
    further_tiles = [number for number, count in enumerate(further) for _ in range(count)]

    def numbers(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=query_starts.device)

    return TileMap(
        tile=tile,
        sequences=numbers(sequences),
        parts_before=numbers([0, *accumulate(further)]),
        further_tiles=numbers(further_tiles + [num_tiles] * (num_further - len(further_tiles))),
    )
