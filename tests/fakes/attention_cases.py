"""Runs the native paged attention and a plain attention over one pool, and says how near the results must be."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.native.kernels import Kernels

from tests.fakes.native_cases import Piece, make_batch, native_kernels, plain_attention

# Decode rows and chunks, with contexts on both sides of the borders of blocks, panels and tiles.
MIXED = (
    Piece(0, 1),
    Piece(15, 1),
    Piece(63, 1),
    Piece(0, 70),
    Piece(130, 1),
    Piece(37, 33),
    Piece(64, 64),
    Piece(5, 2),
)
NO_SPANS: Mapping[int, range] = MappingProxyType({})
# Largest difference, relative to the largest value. bfloat16 keeps 8 bits of the weights and of the result.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def run_both(
    *,
    pieces: tuple[Piece, ...] = MIXED,
    dtype: torch.dtype = torch.float32,
    heads: int = 6,
    kv_heads: int = 2,
    key_dim: int = 64,
    value_dim: int = 64,
    block_size: int = 16,
    kernels: Kernels | None = None,
    spans: Mapping[int, range] = NO_SPANS,
    **rule: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the result of the kernel and that of the plain attention, each `[T, H, E]`.

    `spans` has for some pieces the positions whose tokens see each other.
    """
    torch.manual_seed(7)
    contexts = [torch.zeros(piece.before + piece.count, dtype=torch.int64) for piece in pieces]
    batch, num_blocks = make_batch(pieces, ids=contexts, block_size=block_size)
    # Places that no context owns hold NaN, because the kernel must never read them.
    key_pool = torch.full((num_blocks + 1, block_size, kv_heads, key_dim), torch.nan, dtype=dtype)
    value_pool = torch.full((num_blocks + 1, block_size, kv_heads, value_dim), torch.nan, dtype=dtype)
    query_THD = torch.randn(int(batch.query_starts[-1]), heads, key_dim).to(dtype)
    expected, ends = [], []
    rule = {"scaling": key_dim**-0.5, **rule}
    for row, piece in enumerate(pieces):
        places = places_of(batch, row, block_size)
        key_CKD = torch.randn(len(places), kv_heads, key_dim).to(dtype)
        value_CKE = torch.randn(len(places), kv_heads, value_dim).to(dtype)
        key_pool.flatten(0, 1)[places] = key_CKD
        value_pool.flatten(0, 1)[places] = value_CKE
        start = int(batch.query_starts[row])
        ends_Q = torch.zeros(piece.count, dtype=torch.int32)
        if row in spans:
            ends_Q[spans[row].start - piece.before : spans[row].stop - piece.before] = spans[row].stop
        ends.append(ends_Q)
        expected.append(
            plain_attention(
                query_THD[start : start + piece.count],
                key_CKD,
                value_CKE,
                span_ends_Q=ends_Q if spans else None,
                **rule,
            )
        )
    out_THE = (kernels or native_kernels()).attention(
        query_THD,
        key_pool,
        value_pool,
        block_tables_RB=batch.block_tables_RB,
        query_starts=batch.query_starts,
        context_lens_R=batch.context_lens_R,
        span_ends_T=torch.cat(ends) if spans else None,
        **rule,
    )
    return out_THE, torch.cat(expected)


def places_of(batch: ForwardBatch, row: int, block_size: int) -> torch.Tensor:
    positions = torch.arange(int(batch.context_lens_R[row]))
    return batch.block_tables_RB[row].long()[positions // block_size] * block_size + positions % block_size


def assert_close(
    both: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype = torch.float32, tolerance: float | None = None
) -> None:
    out, expected = both
    assert out.dtype == dtype
    error = (out.double() - expected).abs().max() / expected.abs().max()
    assert error < (tolerance or TOLERANCE[dtype]), error
