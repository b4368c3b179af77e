"""Multiplies rows by the matrices of the experts to which a router has sent them: y = x W^T + b, expert by expert.

A pair is a row with one of its experts. The pairs come in the order of their experts, so that a tile of pairs has one
expert. Each program finds the expert of its tile by itself from the places where the pairs of the experts end, so that
the host knows nothing of these places: the number of programs follows from the number of pairs alone.
"""

# N rows of inputs, P pairs, E experts, I inputs, O outputs

import triton
import triton.language as tl


@triton.jit
def expert_product(
    x,  # [N, I], with any stride of rows
    weights,  # [E, O, I], or [E, I, O] where INPUTS_FIRST, contiguous, in the dtype of x
    biases,  # [E, O], contiguous, in the dtype of x, or None
    pairs,  # [P] int64: the pairs in the order of their experts; pair p has the row p // PAIRS_OF_ROW of x
    ends,  # [E] int32: where in this order the pairs of each expert end
    out,  # [P, O] in the dtype of x, contiguous: pair p has the row p
    x_stride,
    EXPERTS: tl.constexpr,  # E
    EXPERTS_WIDTH: tl.constexpr,  # the next power of two
    INNER: tl.constexpr,  # I
    OUTPUTS: tl.constexpr,  # O
    PAIRS_OF_ROW: tl.constexpr,
    INPUTS_FIRST: tl.constexpr,
    ROWS: tl.constexpr,  # pairs of a tile
    OUT_TILE: tl.constexpr,  # outputs of a program
    INNER_TILE: tl.constexpr,  # inputs that are read at a time
):
    tile = tl.program_id(0)
    experts = tl.arange(0, EXPERTS_WIDTH)
    is_expert = experts < EXPERTS
    expert_ends = tl.load(ends + experts, mask=is_expert, other=0)
    expert_starts = tl.load(ends + experts - 1, mask=is_expert & (experts > 0), other=0)
    num_tiles = (expert_ends - expert_starts + ROWS - 1) // ROWS
    expert = tl.sum((tl.cumsum(num_tiles, axis=0) <= tile).to(tl.int32), axis=0)
    if expert < EXPERTS:  # else the tile is behind the last one
        first_tile = tl.sum(tl.where(experts < expert, num_tiles, 0), axis=0)
        start = tl.sum(tl.where(experts == expert, expert_starts, 0), axis=0)
        end = tl.sum(tl.where(experts == expert, expert_ends, 0), axis=0)
        places = start + (tile - first_tile) * ROWS + tl.arange(0, ROWS)
        is_pair = places < end
        pair = tl.load(pairs + places, mask=is_pair, other=0)
        outputs = tl.program_id(1) * OUT_TILE + tl.arange(0, OUT_TILE)
        is_output = outputs < OUTPUTS
        x_rows = x + (pair // PAIRS_OF_ROW)[:, None] * x_stride
        matrix = weights + expert.to(tl.int64) * INNER * OUTPUTS
        total = tl.zeros([ROWS, OUT_TILE], tl.float32)
        for first in range(0, INNER, INNER_TILE):
            inner = first + tl.arange(0, INNER_TILE)
            is_inner = inner < INNER
            x_tile = tl.load(x_rows + inner[None, :], mask=is_pair[:, None] & is_inner[None, :], other=0.0)
            if INPUTS_FIRST:
                w_tile = tl.load(
                    matrix + inner[:, None] * OUTPUTS + outputs[None, :],
                    mask=is_inner[:, None] & is_output[None, :],
                    other=0.0,
                )
            else:
                w_rows = tl.load(
                    matrix + outputs[:, None] * INNER + inner[None, :],
                    mask=is_output[:, None] & is_inner[None, :],
                    other=0.0,
                )
                w_tile = tl.trans(w_rows)
            total = tl.dot(x_tile, w_tile, total, input_precision="ieee")
        if biases is not None:
            bias = tl.load(biases + expert.to(tl.int64) * OUTPUTS + outputs, mask=is_output, other=0.0)
            total += bias.to(tl.float32)[None, :]
        tl.store(
            out + pair[:, None] * OUTPUTS + outputs[None, :],
            total.to(out.dtype.element_ty),
            mask=is_pair[:, None] & is_output[None, :],
        )
