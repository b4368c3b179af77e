"""RMSNorm of rows, and the sum with a residual before the norm (Zhang and Sennrich, 2019)."""

# N rows, I width

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["epsilon", "num_rows", "num_inner"])
def rms_norm(
    x,  # N rows of I elements; row n lies at (n // num_inner) * outer_stride + (n % num_inner) * inner_stride
    residual,  # [N, I], contiguous; None: nothing is added
    factor,  # [I] float32
    out,  # [N, I], contiguous
    total,  # [N, I], contiguous: x + residual, rounded; None without a residual
    epsilon,
    num_rows,
    num_inner,
    outer_stride,
    inner_stride,
    WIDTH: tl.constexpr,  # I
    FULL_WIDTH: tl.constexpr,  # the next power of two
    ROWS: tl.constexpr,  # rows of a program
    HAS_RESIDUAL: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, FULL_WIDTH)
    is_inside = (rows < num_rows)[:, None] & (dims < WIDTH)[None, :]
    # A GPU divides numbers of 32 bits several times as fast as those of 64.
    starts = (rows // num_inner).to(tl.int64) * outer_stride + (rows % num_inner).to(tl.int64) * inner_stride
    places = rows.to(tl.int64)[:, None] * WIDTH + dims[None, :]
    row_NI = tl.load(x + starts[:, None] + dims[None, :], mask=is_inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        row_NI += tl.load(residual + places, mask=is_inside, other=0.0).to(tl.float32)
        # The norm sees the sum as the next layers see the sum, which is rounded.
        rounded_NI = row_NI.to(total.dtype.element_ty)
        tl.store(total + places, rounded_NI, mask=is_inside)
        row_NI = rounded_NI.to(tl.float32)
    mean_N = tl.sum(row_NI * row_NI, axis=1) / WIDTH
    factor_I = tl.load(factor + dims, mask=dims < WIDTH, other=0.0)
    normed_NI = row_NI * tl.rsqrt(mean_N + epsilon)[:, None] * factor_I[None, :]
    tl.store(out + places, normed_NI.to(out.dtype.element_ty), mask=is_inside)
