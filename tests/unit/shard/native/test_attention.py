"""The native paged attention against attention written out query by query."""

from typing import Any

import pytest
import torch
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.native.kernels import Kernels

from tests.fakes.native_cases import Piece, make_batch, native_kernels, plain_attention

# Decode rows and chunks, contexts on both sides of block, panel and tile borders.
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
# Relative to the largest value. bfloat16 keeps 8 bits of the weights and of the result.
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
    **rule: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel's result and the plain one, `[T, H, E]`."""
    torch.manual_seed(7)
    contexts = [torch.zeros(piece.before + piece.count, dtype=torch.int64) for piece in pieces]
    batch, num_blocks = make_batch(pieces, ids=contexts, block_size=block_size)
    # What no context owns is NaN: it must never be looked at.
    key_pool = torch.full((num_blocks + 1, block_size, kv_heads, key_dim), torch.nan, dtype=dtype)
    value_pool = torch.full((num_blocks + 1, block_size, kv_heads, value_dim), torch.nan, dtype=dtype)
    query_THD = torch.randn(int(batch.query_starts[-1]), heads, key_dim).to(dtype)
    expected = []
    rule = {"scaling": key_dim**-0.5, **rule}
    for row, piece in enumerate(pieces):
        places = places_of(batch, row, block_size)
        key_CKD = torch.randn(len(places), kv_heads, key_dim).to(dtype)
        value_CKE = torch.randn(len(places), kv_heads, value_dim).to(dtype)
        key_pool.flatten(0, 1)[places] = key_CKD
        value_pool.flatten(0, 1)[places] = value_CKE
        start = int(batch.query_starts[row])
        expected.append(plain_attention(query_THD[start : start + piece.count], key_CKD, value_CKE, **rule))
    out_THE = (kernels or native_kernels()).attention(
        query_THD,
        key_pool,
        value_pool,
        block_tables_RB=batch.block_tables_RB,
        query_starts=batch.query_starts,
        context_lens_R=batch.context_lens_R,
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4), (9, 3), (50, 1)])
def test_query_heads_share_keys_and_values(dtype: torch.dtype, heads: int, kv_heads: int) -> None:
    assert_close(run_both(dtype=dtype, heads=heads, kv_heads=kv_heads), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "rule",
    [
        {"window_tokens": 1},
        {"window_tokens": 40},
        {"window_tokens": 100},
        {"chunk_tokens": 48},
        {"softcap": 1.5},
        {"sinks_H": torch.tensor([0.5, -2.0, 3.0, 8.0, 0.0, -50.0])},
        {"slopes_H": torch.tensor([0.5, 0.25, 0.125, 0.01, 1.0, 0.0])},
        {"scaling": 0.7},
        {
            "window_tokens": 70,
            "softcap": 3.0,
            "sinks_H": torch.tensor([0.5, -2.0, 3.0, 8.0, 0.0, -50.0]),
            "slopes_H": torch.full((6,), 0.1),
        },
    ],
    ids=lambda rule: "+".join(rule),
)
def test_each_rule_of_a_layer(dtype: torch.dtype, rule: dict[str, Any]) -> None:
    assert_close(run_both(dtype=dtype, **rule), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(16, 16), (24, 40), (80, 80), (128, 128), (192, 128), (256, 256)])
def test_widths_that_do_not_fill_vectors(dtype: torch.dtype, key_dim: int, value_dim: int) -> None:
    assert_close(run_both(dtype=dtype, key_dim=key_dim, value_dim=value_dim), dtype)


@pytest.mark.parametrize("block_size", [1, 4, 16, 48])
def test_block_sizes_that_do_not_divide_the_tile(block_size: int) -> None:
    assert_close(run_both(block_size=block_size))


def test_one_thread_gives_the_same_as_three() -> None:
    large = (Piece(300, 200), Piece(900, 1))  # enough that the others are woken
    both = run_both(pieces=large, kernels=native_kernels(3))
    assert_close(both)
    assert torch.equal(run_both(pieces=large, kernels=native_kernels(1))[0], both[0])


def test_large_scores_do_not_overflow() -> None:
    # Scores of some thousands carry an absolute error of 1e-4, which the exponential makes relative.
    assert_close(run_both(scaling=40.0), tolerance=1e-3)
