"""Gumbel noise of draws, which depends on the request, the position and the id alone.

The numbers are those of `sampling/noise.py`, which names the source of the generator (Philox4x32-10).
"""

# S rows that draw, C ids of each row

import triton
import triton.language as tl

MASK = tl.constexpr(0xFFFFFFFF)
MULTIPLIER_0 = tl.constexpr(0xD2511F53)
MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
KEY_STEP_0 = tl.constexpr(0x9E3779B9)
KEY_STEP_1 = tl.constexpr(0xBB67AE85)


# The candidates of a step may be the first of more, so that the stride differs from step to step.
@triton.jit(do_not_specialize=["num_ids", "ids_stride"])
def gumbel(
    seed_words,  # [S, 2] int64, contiguous: low and high word, 0 .. 2**32 - 1
    positions,  # [S] int64
    ids,  # [S, C] int64, with any stride of rows
    noise,  # [S, C] float64, contiguous
    num_ids,
    ids_stride,
    IDS: tl.constexpr,  # ids of a program, a power of two
):
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * IDS + tl.arange(0, IDS)
    is_id = places < num_ids
    word_0 = tl.load(ids + row * ids_stride + places, mask=is_id, other=0)
    word_1 = tl.load(positions + row) + tl.zeros_like(word_0)
    word_2 = tl.zeros_like(word_0)
    word_3 = tl.zeros_like(word_0)
    key_0 = tl.load(seed_words + row * 2)
    key_1 = tl.load(seed_words + row * 2 + 1)
    for _ in tl.static_range(10):
        # A product wraps modulo 2**64, which keeps its bits, and the shift fills the upper half with the sign.
        product_0 = word_0 * MULTIPLIER_0
        product_1 = word_2 * MULTIPLIER_1
        word_0 = ((product_1 >> 32) ^ word_1 ^ key_0) & MASK
        word_2 = ((product_0 >> 32) ^ word_3 ^ key_1) & MASK
        word_1 = product_1 & MASK
        word_3 = product_0 & MASK
        key_0 = (key_0 + KEY_STEP_0) & MASK
        key_1 = (key_1 + KEY_STEP_1) & MASK
    uniform = (((word_0 << 20) | (word_1 >> 12)).to(tl.float64) + 0.5) * 2.220446049250313e-16  # 2**-52
    tl.store(noise + row * num_ids + places, -tl.log(-tl.log(uniform)), mask=is_id)
