"""Finds the sequence of each tile of the attention kernel, and into how many parts the context of each tile is cut.

One program does the work, so that a step launches one kernel for the numbers that all its layers read. The rule stands
in `tile_map.py`.
"""

# R sequences, X further parts

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_sequences", "num_tiles", "num_further", "least_part"])
def plan_tiles(
    query_starts,  # [R + 1] int32
    context_lens,  # [R] int32
    tile_sequences,  # [tiles] int32
    parts_before,  # [tiles + 1] int32: the further parts of the tiles before each tile
    further_tiles,  # [X] int32: the tile of each further part; `num_tiles` where there are fewer
    num_sequences,
    num_tiles,
    num_further,  # X; 0: no context is cut
    least_part,  # tokens of the smallest part
    QUERIES: tl.constexpr,  # of a tile
    SEQUENCES: tl.constexpr,  # sequences that are read at a time, a power of two
):
    lanes = tl.arange(0, SEQUENCES)
    total = tl.zeros([SEQUENCES], tl.int64)
    for first in range(0, num_sequences, SEQUENCES):
        sequences = first + lanes
        is_sequence = sequences < num_sequences
        start = tl.load(query_starts + sequences, mask=is_sequence, other=0)
        stop = tl.load(query_starts + sequences + 1, mask=is_sequence, other=0)
        length = tl.load(context_lens + sequences, mask=is_sequence, other=0)
        total += tl.cdiv(stop - start, QUERIES).to(tl.int64) * length
    part_len = tl.maximum(tl.sum(total, axis=0) // tl.maximum(num_further, 1) + 1, least_part)
    part_len = tl.where(num_further > 0, part_len, 2147483647).to(tl.int32)

    num_parts = tl.sum(tl.zeros_like(lanes), axis=0)
    for first in range(0, num_sequences + 1, SEQUENCES):
        sequences = first + lanes
        is_sequence = sequences < num_sequences
        # The padding behind the sequences has tiles as a sequence has.
        is_known = sequences <= num_sequences
        start = tl.load(query_starts + sequences, mask=is_known, other=0)
        stop = tl.load(query_starts + sequences + 1, mask=is_sequence, other=0)
        length = tl.load(context_lens + sequences, mask=is_sequence, other=0)
        first_tile = start // QUERIES + sequences
        next_tile = tl.where(is_sequence, stop // QUERIES + sequences + 1, num_tiles)
        last_tile = tl.where(is_known, next_tile, first_tile)
        num_full = tl.where(is_sequence, tl.cdiv(stop - start, QUERIES), 0)  # tiles with queries
        further = tl.where(
            num_full > 0, tl.maximum(length - 1, 0) // part_len, 0
        )  # parts of each tile beyond the first
        of_sequence = num_full * further
        before = num_parts + tl.cumsum(of_sequence, axis=0) - of_sequence
        for place in range(0, tl.max(last_tile - first_tile, axis=0)):
            tiles = first_tile + place
            is_tile = tiles < last_tile
            tl.store(tile_sequences + tiles, sequences, mask=is_tile)
            tl.store(parts_before + tiles, before + tl.minimum(place, num_full) * further, mask=is_tile)
        for place in range(0, tl.max(of_sequence, axis=0)):
            tiles = first_tile + place // tl.maximum(further, 1)
            tl.store(further_tiles + before + place, tiles, mask=place < of_sequence)
        num_parts += tl.sum(of_sequence, axis=0)
    tl.store(parts_before + num_tiles, num_parts)
    for first in range(num_parts, num_further, SEQUENCES):
        places = first + lanes
        tl.store(further_tiles + places, tl.zeros_like(places) + num_tiles, mask=places < num_further)
