"""Makes of the packed form of a decode step what the layers read. This is the first kernel of a recorded graph.

A graph reads fixed memory with fixed sizes, and a step has as many rows as it has. So the packed form says how many
rows and blocks there are, and the rows of the graph behind these become padding in the scratch block
(`model/decode_rows.py`).
"""

# n rows of the graph, S slots, W blocks of the widest table that the graph has room for

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["table_stride", "rope_stride", "scratch_block"])
def unpack_rows(
    packed,  # int32: header, fields and block tables
    last_ids,  # [S] int64: the id that each slot sampled last
    slots,  # [n] int64
    input_ids,  # [n] int64
    positions,  # [n] int64
    places,  # [n] int64
    context_lens,  # [n] int32
    tables,  # [n, W] int32; columns behind those that a row's context needs are left alone
    adapters,  # [n] int32, or None
    is_long,  # [n] bool, or None
    rope_positions,  # [3, n] int64, or None
    table_stride,
    rope_stride,
    scratch_block,
    HEADER: tl.constexpr,  # integers before the fields
    NUM_FIELDS: tl.constexpr,
    FED: tl.constexpr,  # stands for the id that the slot sampled last
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,  # blocks that are copied at a time
):
    row = tl.program_id(0)
    num_rows = tl.load(packed)
    width = tl.load(packed + 1)
    is_row = row < num_rows
    fields = packed + HEADER + row
    slot = tl.load(fields, mask=is_row, other=0).to(tl.int64)
    start = tl.load(fields + num_rows, mask=is_row, other=0)
    given_id = tl.load(fields + 2 * num_rows, mask=is_row, other=0)
    last_id = tl.load(last_ids + slot, mask=given_id == FED, other=0)
    tl.store(slots + row, slot)
    tl.store(input_ids + row, tl.where(given_id == FED, last_id, given_id.to(tl.int64)))
    tl.store(positions + row, start.to(tl.int64))
    tl.store(context_lens + row, start + 1)
    if adapters is not None:
        tl.store(adapters + row, tl.load(fields + 3 * num_rows, mask=is_row, other=0))
    if is_long is not None:
        tl.store(is_long + row, tl.load(fields + 4 * num_rows, mask=is_row, other=0) != 0)
    if rope_positions is not None:
        rope_position = (start + tl.load(fields + 5 * num_rows, mask=is_row, other=0)).to(tl.int64)
        for axis in tl.static_range(3):
            tl.store(rope_positions + axis * rope_stride + row, rope_position)

    own = packed + HEADER + NUM_FIELDS * num_rows + row.to(tl.int64) * width
    last_block = start // BLOCK_SIZE
    block = tl.load(own + last_block, mask=is_row, other=scratch_block).to(tl.int64)
    tl.store(places + row, block * BLOCK_SIZE + start % BLOCK_SIZE)
    num_known = tl.where(is_row, last_block + 1, 0)  # padding has one block, which no table says
    for first in range(0, last_block + 1, TILE):
        columns = first + tl.arange(0, TILE)
        blocks = tl.load(own + columns, mask=columns < num_known, other=scratch_block)
        tl.store(tables + row.to(tl.int64) * table_stride + columns, blocks, mask=columns <= last_block)
