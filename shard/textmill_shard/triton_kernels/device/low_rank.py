"""Adds the products of LoRA adapters to rows that a linear layer has computed: `y += scale (x A^T) B^T`.

`shrink` makes z = scale x A^T, and `expand` adds z B^T. A program computes a tile of rows that follow one another, and
goes through the adapters of the tile one by one: a tile of decodes is a single row, and a tile of a chunk mostly has
one adapter. The matrices of an adapter stay where they were loaded, and tables of addresses by place tell where.
"""

# T rows, I inputs, O outputs, r rank of an adapter, P places of adapters (0: no adapter)

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def shrink(
    x,  # [T, I], with any stride of rows
    places,  # [T] int32
    addresses,  # [P] int64: of A, [r, I], contiguous, in the dtype of x
    ranks,  # [P] int32: 0 for an adapter that leaves the layer alone
    scales,  # [P] float32
    z,  # [T, Z_WIDTH], contiguous, in the dtype of x
    num_rows,
    x_stride,
    INNER: tl.constexpr,  # I
    INNER_TILE: tl.constexpr,  # inputs that are read at a time
    STAGES: tl.constexpr,  # reads that are under way together; the compiler looks for none where no matrices multiply
    ROWS: tl.constexpr,  # rows of a tile
    RANK_TILE: tl.constexpr,
    Z_WIDTH: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first_rank = tl.program_id(1) * RANK_TILE
    rank_ids = first_rank + tl.arange(0, RANK_TILE)
    x_rows = x + rows.to(tl.int64)[:, None] * x_stride
    z_rows = z + rows.to(tl.int64)[:, None] * Z_WIDTH + rank_ids[None, :]
    left = tl.load(places + rows, mask=rows < num_rows, other=0)
    place = tl.max(left, axis=0)
    while place > 0:
        is_mine = left == place
        rank = tl.load(ranks + place)
        if rank > first_rank:
            # The compiler believes this of a pointer, and forgets the like of a number that becomes a pointer.
            a = tl.multiple_of(tl.load(addresses + place).to(x.dtype), 16)
            total = tl.zeros([ROWS, RANK_TILE], tl.float32)
            for start in tl.range(0, INNER, INNER_TILE, num_stages=STAGES):
                inner = start + tl.arange(0, INNER_TILE)
                x_tile = tl.load(x_rows + inner[None, :], mask=is_mine[:, None] & (inner < INNER)[None, :], other=0.0)
                a_tile = tl.load(
                    a + rank_ids[:, None] * INNER + inner[None, :],
                    mask=(rank_ids < rank)[:, None] & (inner < INNER)[None, :],
                    other=0.0,
                )
                if ROWS == 1:
                    total += tl.sum(a_tile.to(tl.float32) * x_tile.to(tl.float32), axis=1)[None, :]
                else:
                    total = tl.dot(x_tile, tl.trans(a_tile), total, input_precision="ieee")
            total = total * tl.load(scales + place)
            tl.store(z_rows, total.to(z.dtype.element_ty), mask=is_mine[:, None])
        left = tl.where(is_mine, 0, left)
        place = tl.max(left, axis=0)


@triton.jit(do_not_specialize=["num_rows"])
def expand(
    z,  # [T, Z_WIDTH], contiguous
    places,  # [T] int32
    addresses,  # [P] int64: of the transposed B, [r, O], contiguous, in the dtype of z
    ranks,  # [P] int32
    out,  # [T, O] in the dtype of z, with any stride of rows; changed in place
    num_rows,
    out_stride,
    OUTPUTS: tl.constexpr,  # O
    OUT_TILE: tl.constexpr,  # outputs of a program
    ROWS: tl.constexpr,
    RANK_TILE: tl.constexpr,  # ranks that are read at a time
    Z_WIDTH: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    outputs = tl.program_id(1) * OUT_TILE + tl.arange(0, OUT_TILE)
    is_output = outputs < OUTPUTS
    z_rows = z + rows.to(tl.int64)[:, None] * Z_WIDTH
    out_rows = out + rows.to(tl.int64)[:, None] * out_stride + outputs[None, :]
    left = tl.load(places + rows, mask=rows < num_rows, other=0)
    place = tl.max(left, axis=0)
    while place > 0:
        is_mine = left == place
        rank = tl.load(ranks + place)
        if rank > 0:
            # The compiler believes this of a pointer, and forgets the like of a number that becomes a pointer.
            b = tl.multiple_of(tl.load(addresses + place).to(z.dtype), 16)
            total = tl.zeros([ROWS, OUT_TILE], tl.float32)
            for start in range(0, rank, RANK_TILE):
                rank_ids = start + tl.arange(0, RANK_TILE)
                is_rank = rank_ids < rank
                z_tile = tl.load(z_rows + rank_ids[None, :], mask=is_mine[:, None] & is_rank[None, :], other=0.0)
                b_tile = tl.load(
                    b + rank_ids[:, None] * OUTPUTS + outputs[None, :],
                    mask=is_rank[:, None] & is_output[None, :],
                    other=0.0,
                )
                if ROWS == 1:
                    z_column = tl.trans(z_tile).to(tl.float32)
                    total += tl.sum(b_tile.to(tl.float32) * z_column, axis=0)[None, :]
                else:
                    total = tl.dot(z_tile, b_tile, total, input_precision="ieee")
            is_stored = is_mine[:, None] & is_output[None, :]
            before = tl.load(out_rows, mask=is_stored, other=0.0).to(tl.float32)
            tl.store(out_rows, (before + total).to(out.dtype.element_ty), mask=is_stored)
        left = tl.where(is_mine, 0, left)
        place = tl.max(left, axis=0)
