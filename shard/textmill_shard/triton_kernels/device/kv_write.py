"""Writes keys and values of a step to their places, and turns queries and keys by their rotary tables on the way."""

# T tokens, H query heads, K key/value heads, G = H // K, D key width, E value width, P rotary width

import triton
import triton.language as tl


@triton.jit
def clamp(x, largest: tl.constexpr):
    # NaN stays NaN, so that the request that made it fails.
    return tl.clamp(x, -largest, largest, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def write_kv(
    query,  # [T, H, D], with any strides of tokens and heads; None without rotary tables
    key,  # [T, K, D], likewise
    value,  # [T, K, E], likewise
    turned_query,  # [T, H, D], contiguous; None without rotary tables
    key_pool,  # [blocks * block size, K, D], contiguous
    value_pool,  # [blocks * block size, K, E], contiguous
    places,  # [T] int64
    cosines,  # [T, P] with any stride of tokens; None without rotary tables
    sines,  # [T, P], likewise
    key_scales,  # [K] float32: keys are divided by these; None where the pools have the model's type
    value_scales,  # [K] float32, likewise
    query_token_stride,
    query_head_stride,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    table_token_stride,
    GROUP: tl.constexpr,  # G
    GROUP_WIDTH: tl.constexpr,  # the next power of two
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    ROTARY_DIM: tl.constexpr,  # P; 0: nothing turns
    IS_INTERLEAVED: tl.constexpr,  # dim 2 i turns with dim 2 i + 1, else dim i with dim i + P / 2
    LARGEST_STORED: tl.constexpr,  # larger numbers become this number; 0: the pools have the model's type
):
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    num_kv_heads = tl.num_programs(1)
    pool_row = tl.load(places + token) * num_kv_heads + kv_head
    key_dims = tl.arange(0, KEY_WIDTH)
    value_dims = tl.arange(0, VALUE_WIDTH)
    is_key = key_dims < KEY_DIM
    is_value = value_dims < VALUE_DIM

    key_row = key + token * key_token_stride + kv_head * key_head_stride
    key_D = tl.load(key_row + key_dims, mask=is_key, other=0.0).to(tl.float32)
    if ROTARY_DIM > 0:
        turns = key_dims < ROTARY_DIM
        if IS_INTERLEAVED:
            is_first = key_dims % 2 == 0
            partners = tl.where(is_first, key_dims + 1, key_dims - 1)
        else:
            is_first = key_dims < ROTARY_DIM // 2
            partners = tl.where(is_first, key_dims + ROTARY_DIM // 2, key_dims - ROTARY_DIM // 2)
        table_row = token * table_token_stride + key_dims
        cosines_D = tl.load(cosines + table_row, mask=turns, other=1.0).to(tl.float32)
        sines_D = tl.load(sines + table_row, mask=turns, other=0.0).to(tl.float32)
        sines_D = tl.where(is_first, -sines_D, sines_D)

        key_partner_D = tl.load(key_row + partners, mask=turns, other=0.0).to(tl.float32)
        key_D = key_D * cosines_D + key_partner_D * sines_D

        members = tl.arange(0, GROUP_WIDTH)
        heads = kv_head * GROUP + members
        is_query = (members < GROUP)[:, None] & is_key[None, :]
        query_rows = query + token * query_token_stride + (heads * query_head_stride)[:, None]
        query_GD = tl.load(query_rows + key_dims[None, :], mask=is_query, other=0.0).to(tl.float32)
        query_partner_GD = tl.load(query_rows + partners[None, :], mask=is_query & turns[None, :], other=0.0)
        query_GD = query_GD * cosines_D[None, :] + query_partner_GD.to(tl.float32) * sines_D[None, :]
        turned_rows = turned_query + ((token * num_kv_heads * GROUP + heads) * KEY_DIM)[:, None]
        tl.store(turned_rows + key_dims[None, :], query_GD.to(turned_query.dtype.element_ty), mask=is_query)

    value_row = value + token * value_token_stride + kv_head * value_head_stride
    value_E = tl.load(value_row + value_dims, mask=is_value, other=0.0).to(tl.float32)
    if LARGEST_STORED > 0:
        key_D = clamp(key_D / tl.load(key_scales + kv_head), LARGEST_STORED)
        value_E = clamp(value_E / tl.load(value_scales + kv_head), LARGEST_STORED)
    tl.store(key_pool + pool_row * KEY_DIM + key_dims, key_D.to(key_pool.dtype.element_ty), mask=is_key)
    tl.store(value_pool + pool_row * VALUE_DIM + value_dims, value_E.to(value_pool.dtype.element_ty), mask=is_value)
