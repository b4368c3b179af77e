"""Paged attention over any mix of decode rows and prefill chunks in one launch, with an online softmax.

The method is that of FlashAttention (Dao et al., 2022), over keys and values that stand in blocks. A program computes a
tile: some queries that follow one another in one sequence, for all query heads that share one key/value head. Where the
context of a tile is cut (`tile_map.py`), each program reads a part of the context, and `merge_splits` puts the parts
together (Flash-Decoding).

Exponentials have the base 2, so scores are multiplied by `LOG2_E`.
"""

# T tokens, R sequences, H query heads, K key/value heads, G = H // K, D key width, E value width, X further parts of
# contexts. In the memory of parts the first parts of the tiles that are cut lie behind the X further ones. A first part
# has the number of its tile's first further part.

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def tanh(x):
    # exp grows beyond all bounds for large x, and the quotient is then 0.
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit(
    # Numbers that differ from batch to batch must not make further variants.
    do_not_specialize=[
        *("scaling", "softcap", "window_tokens", "chunk_tokens"),
        *("num_tiles", "num_further", "num_sequences", "num_tokens", "table_stride"),
    ]
)
def paged_attention(
    query,  # [T, H, D], with any strides of tokens and heads
    key_pool,  # [blocks, BLOCK_SIZE, K, D], contiguous, in the query's dtype, or with scales in 8 bits
    value_pool,  # [blocks, BLOCK_SIZE, K, E], contiguous
    out,  # [T, H, E] in the query's dtype
    parts,  # [2 X, K, ROWS, E] float32: sums of the values of each part; None without parts, like the next two
    maxima,  # [2 X, K, ROWS] float32: highest score of each part
    sums,  # [2 X, K, ROWS] float32: sum of the exponentials of each part
    tile_sequences,  # [tiles] int32: the sequence of each tile; R stands for the padding behind all sequences
    parts_before,  # [tiles + 1] int32: further parts of the tiles before each tile; None without parts
    further_tiles,  # [X] int32: the tile of each further part, `num_tiles` = none; None without parts
    query_starts,  # [R + 1] int32
    context_lens,  # [R] int32
    block_tables,  # [R, B] int32
    sinks,  # [H] float32, or None
    slopes,  # [H] float32, or None
    span_ends,  # [T] int32: a query sees all places before its entry, 0 = none; None where no query has one
    key_scales,  # [K] float32: by which keys are multiplied; None without scales
    value_scales,  # [K] float32, likewise
    scaling,
    softcap,
    window_tokens,
    chunk_tokens,
    num_tiles,
    num_further,
    num_sequences,
    num_tokens,
    query_token_stride,
    query_head_stride,
    table_stride,
    GROUP: tl.constexpr,  # G
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    KEY_WIDTH: tl.constexpr,  # the next power of two
    VALUE_WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,  # rows of a tile: queries times G, filled up to a power of two
    PLACES: tl.constexpr,  # keys that a program reads at a time
    HAS_WINDOW: tl.constexpr,
    HAS_CHUNK: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    HAS_SPANS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    HAS_SCALES: tl.constexpr,
):
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    num_kv_heads = tl.num_programs(1)
    if IS_SPLIT:
        further = tile - num_tiles  # a program behind those of the tiles has a further part of a tile
        tile = tl.load(further_tiles + further, mask=further >= 0, other=tile)
        if tile == num_tiles:
            return
        before = tl.load(parts_before + tile)
        num_parts = 1 + tl.load(parts_before + tile + 1) - before
        part = tl.where(further >= 0, 1 + further - before, 0)
    QUERIES: tl.constexpr = ROWS // GROUP

    sequence = tl.load(tile_sequences + tile)
    is_padding = sequence == num_sequences
    start = tl.load(query_starts + sequence)
    stop = tl.load(query_starts + sequence + 1, mask=sequence < num_sequences, other=num_tokens)
    num_queries = stop - start
    # Tiles before that of sequence r: as many as its start holds whole tiles, and one for each sequence before.
    first_query = (tile - start // QUERIES - sequence) * QUERIES
    if first_query >= num_queries:
        return
    context_len = tl.load(context_lens + sequence, mask=sequence < num_sequences, other=0)
    num_before = context_len - num_queries

    rows = tl.arange(0, ROWS)
    queries = first_query + rows // GROUP
    heads = (kv_head * GROUP + rows % GROUP).to(tl.int64)  # heads that come before the tokens lie far apart
    is_row = (rows < QUERIES * GROUP) & (queries < num_queries)
    positions = num_before + queries
    tokens = (start + queries).to(tl.int64)
    last_seen = positions
    if HAS_SPANS:
        ends = tl.load(span_ends + tokens, mask=is_row, other=0)
        last_seen = tl.minimum(tl.maximum(positions, ends - 1), context_len - 1)
    key_dims = tl.arange(0, KEY_WIDTH)
    value_dims = tl.arange(0, VALUE_WIDTH)

    query_tile = tl.load(
        query + (tokens * query_token_stride + heads * query_head_stride)[:, None] + key_dims[None, :],
        mask=is_row[:, None] & (key_dims < KEY_DIM)[None, :],
        other=0.0,
    )
    if HAS_SLOPES:
        slope_of_row = tl.load(slopes + heads, mask=is_row, other=0.0)

    # A sink is a score without a value. The first part counts it.
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if HAS_SINKS:
        counts_sink = is_row
        if IS_SPLIT:
            counts_sink &= rows < tl.where(part == 0, ROWS, 0)
        highest = tl.load(sinks + heads, mask=counts_sink, other=float("-inf")) * LOG2_E
        total = tl.where(counts_sink, 1.0, 0.0)
    attended = tl.zeros([ROWS, VALUE_WIDTH], tl.float32)
    if HAS_SCALES:
        # A scale belongs to a head, so keys and values need not be multiplied one by one.
        scaling = scaling * tl.load(key_scales + kv_head)
        value_scale = tl.load(value_scales + kv_head)

    # The places that the queries of the tile see, cut into equal parts.
    first_position = num_before + first_query
    end = num_before + tl.minimum(first_query + QUERIES, num_queries)
    if HAS_SPANS:
        end = tl.maximum(end, tl.max(tl.where(is_row, last_seen, 0), axis=0) + 1)
    begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(begin, first_position - window_tokens + 1)
    if HAS_CHUNK:
        begin = tl.maximum(begin, first_position - first_position % chunk_tokens)
    first_turn = begin // PLACES
    end_turn = tl.where(is_padding, first_turn, tl.cdiv(end, PLACES))  # padding reads nothing, and so becomes zeros
    if IS_SPLIT:
        turns_of_part = tl.cdiv(end_turn - first_turn, num_parts)
        first_turn = first_turn + part * turns_of_part
        end_turn = tl.minimum(first_turn + turns_of_part, end_turn)

    key_stride = num_kv_heads * KEY_DIM
    value_stride = num_kv_heads * VALUE_DIM
    table = block_tables + sequence.to(tl.int64) * table_stride
    for turn in range(first_turn, end_turn):
        places = turn * PLACES + tl.arange(0, PLACES)
        is_place = places < end
        blocks = tl.load(table + places // BLOCK_SIZE, mask=is_place, other=0).to(tl.int64)
        pool_rows = blocks * BLOCK_SIZE + places % BLOCK_SIZE
        keys = tl.load(
            key_pool + (pool_rows * key_stride + kv_head * KEY_DIM)[:, None] + key_dims[None, :],
            mask=is_place[:, None] & (key_dims < KEY_DIM)[None, :],
            other=0.0,
        )
        if HAS_SCALES:
            keys = keys.to(query_tile.dtype)
        scores = tl.dot(query_tile, tl.trans(keys), input_precision="ieee") * scaling
        if HAS_SOFTCAP:
            scores = softcap * tanh(scores / softcap)
        if HAS_SLOPES:
            scores += slope_of_row[:, None] * (places[None, :] - positions[:, None]).to(tl.float32)
        sees = is_row[:, None] & (places[None, :] <= last_seen[:, None])
        if HAS_WINDOW:
            sees &= places[None, :] > positions[:, None] - window_tokens
        if HAS_CHUNK:
            sees &= places[None, :] // chunk_tokens == positions[:, None] // chunk_tokens
        scores = tl.where(sees, scores * LOG2_E, float("-inf"))

        new_highest = tl.maximum(highest, tl.max(scores, axis=1))
        # A row that has seen nothing yet has the maximum minus infinity, from which nothing may be subtracted.
        base = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(highest - base)
        total = total * shrink + tl.sum(weights, axis=1)
        highest = new_highest

        # Places beyond the context may hold NaN, and a weight of zero times NaN is NaN, so they are read as zeros.
        values = tl.load(
            value_pool + (pool_rows * value_stride + kv_head * VALUE_DIM)[:, None] + value_dims[None, :],
            mask=is_place[:, None] & (value_dims < VALUE_DIM)[None, :],
            other=0.0,
        )
        if HAS_SCALES:
            values = values.to(query_tile.dtype)
        attended = attended * shrink[:, None]
        attended = tl.dot(weights.to(values.dtype), values, attended, input_precision="ieee")

    if HAS_SCALES:
        attended = attended * value_scale
    num_heads = num_kv_heads * GROUP
    out_rows = tokens * num_heads + heads
    is_value = is_row[:, None] & (value_dims < VALUE_DIM)[None, :]
    if IS_SPLIT:
        num_cut = tl.where(num_parts > 1, ROWS, 0)  # rows whose result is that of a part
        is_cut = is_row & (rows < num_cut)
        place = tl.where(further >= 0, further, num_further + before).to(tl.int64)
        part_rows = (place * num_kv_heads + kv_head) * ROWS + rows
        tl.store(maxima + part_rows, highest, mask=is_cut)
        tl.store(sums + part_rows, total, mask=is_cut)
        tl.store(
            parts + part_rows[:, None] * VALUE_DIM + value_dims[None, :], attended, mask=is_value & is_cut[:, None]
        )
        is_value &= (rows >= num_cut)[:, None]
    attended = attended / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(
        out + out_rows[:, None] * VALUE_DIM + value_dims[None, :], attended.to(out.dtype.element_ty), mask=is_value
    )


@triton.jit(do_not_specialize=["num_tiles", "num_further", "num_sequences", "num_tokens"])
def merge_splits(
    parts,  # [2 X, K, ROWS, E] float32
    maxima,  # [2 X, K, ROWS] float32
    sums,  # [2 X, K, ROWS] float32
    out,  # [T, H, E]
    tile_sequences,  # [tiles] int32
    parts_before,  # [tiles + 1] int32
    further_tiles,  # [X] int32
    query_starts,  # [R + 1] int32
    num_tiles,
    num_further,  # X
    num_sequences,
    num_tokens,
    GROUP: tl.constexpr,  # G
    VALUE_DIM: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,  # of a tile
    MERGED_ROWS: tl.constexpr,  # of a program
    PARTS: tl.constexpr,  # parts that are read at a time, a power of two
):
    further = tl.program_id(0)
    kv_head = tl.program_id(1)
    first_row = tl.program_id(2) * MERGED_ROWS
    num_kv_heads = tl.num_programs(1)
    QUERIES: tl.constexpr = ROWS // GROUP
    tile = tl.load(further_tiles + further)
    if tile == num_tiles:
        return
    before = tl.load(parts_before + tile)
    if further != before:  # the first further part of a tile stands for the tile
        return
    num_parts = 1 + tl.load(parts_before + tile + 1) - before
    sequence = tl.load(tile_sequences + tile)
    start = tl.load(query_starts + sequence)
    stop = tl.load(query_starts + sequence + 1, mask=sequence < num_sequences, other=num_tokens)
    first_query = (tile - start // QUERIES - sequence) * QUERIES
    num_rows = tl.minimum(QUERIES, stop - start - first_query) * GROUP
    if first_row >= num_rows:
        return
    rows = first_row + tl.arange(0, MERGED_ROWS)
    is_row = rows < num_rows
    value_dims = tl.arange(0, VALUE_WIDTH)
    is_value = value_dims < VALUE_DIM

    highest = tl.full([MERGED_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([MERGED_ROWS], tl.float32)
    attended = tl.zeros([MERGED_ROWS, VALUE_WIDTH], tl.float32)
    for first in range(0, num_parts, PARTS):
        numbers = first + tl.arange(0, PARTS)
        places = tl.where(numbers == 0, num_further + before, before + numbers - 1).to(tl.int64)
        part_rows = ((places * num_kv_heads + kv_head) * ROWS)[:, None] + rows[None, :]
        is_there = (numbers < num_parts)[:, None] & is_row[None, :]
        highest_of_part = tl.load(maxima + part_rows, mask=is_there, other=float("-inf"))
        total_of_part = tl.load(sums + part_rows, mask=is_there, other=0.0)
        attended_of_part = tl.load(
            parts + part_rows[:, :, None] * VALUE_DIM + value_dims[None, None, :],
            mask=is_there[:, :, None] & is_value[None, None, :],
            other=0.0,
        )
        new_highest = tl.maximum(highest, tl.max(highest_of_part, axis=0))
        base = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        shrink = tl.exp2(highest - base)
        shrink_of_part = tl.exp2(highest_of_part - base[None, :])
        total = total * shrink + tl.sum(total_of_part * shrink_of_part, axis=0)
        attended = attended * shrink[:, None] + tl.sum(attended_of_part * shrink_of_part[:, :, None], axis=0)
        highest = new_highest
    attended = attended / tl.where(total == 0.0, 1.0, total)[:, None]
    tokens = (start + first_query + rows // GROUP).to(tl.int64)
    out_rows = tokens * (num_kv_heads * GROUP) + kv_head * GROUP + rows % GROUP
    tl.store(
        out + out_rows[:, None] * VALUE_DIM + value_dims[None, :],
        attended.to(out.dtype.element_ty),
        mask=is_row[:, None] & is_value[None, :],
    )
