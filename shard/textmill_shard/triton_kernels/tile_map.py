"""Finds the sequence of each tile of the attention kernel, on the device, so that the host waits for nothing."""

# R sequences

import torch

from textmill_shard.triton_kernels.interface import TileMap
from textmill_shard.triton_kernels.tiles import Tile


def map_tiles(query_starts: torch.Tensor, tile: Tile, *, group: int, num_tokens: int) -> TileMap:
    """Return the map for sequences that begin at `query_starts` (`[R + 1]` int32).

    Sequence r begins with the tile `query_starts[r] // queries of a tile + r`. So each sequence has at least the tiles
    that its queries need, the number of tiles follows from the sizes of the batch alone, and some tiles stay empty.
    """
    num_queries = tile.num_queries(group)
    num_sequences = query_starts.shape[0] - 1
    num_tiles = num_tokens // num_queries + num_sequences + 1
    device = query_starts.device
    first_tiles = query_starts // num_queries + torch.arange(num_sequences + 1, dtype=torch.int32, device=device)
    tiles = torch.arange(num_tiles, dtype=torch.int32, device=device)
    sequences = torch.searchsorted(first_tiles, tiles, right=True, out_int32=True) - 1
    return TileMap(tile=tile, sequences=sequences)
