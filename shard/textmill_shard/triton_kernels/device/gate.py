"""The gate of an MLP: an activation of one half of a product times the other half."""

# T tokens, I inner width

import triton
import triton.language as tl

from textmill_shard.triton_kernels.device.attention import tanh


@triton.jit
def gate_up(
    gate,  # [T, I], with any stride of tokens
    up,  # [T, I], likewise
    out,  # [T, I], contiguous
    gate_stride,
    up_stride,
    WIDTH: tl.constexpr,  # I
    TILE: tl.constexpr,  # elements of a program
    ACTIVATION: tl.constexpr,  # "silu", "gelu" or "gelu_tanh"
):
    token = tl.program_id(0).to(tl.int64)
    dims = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_inside = dims < WIDTH
    x = tl.load(gate + token * gate_stride + dims, mask=is_inside, other=0.0).to(tl.float32)
    factor = tl.load(up + token * up_stride + dims, mask=is_inside, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        active = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        active = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        # sqrt(2 / pi) * (x + 0.044715 x^3), Hendrycks and Gimpel, 2016
        active = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    tl.store(out + token * WIDTH + dims, (active * factor).to(out.dtype.element_ty), mask=is_inside)
