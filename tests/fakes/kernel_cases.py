"""Runs Triton's interpreter on paged batches, beside the plain torch that each kernel must agree with.

The interpreter computes on the CPU, and is exact in fp32. `tests/conftest.py` switches the interpreter on.
"""

# T tokens, R sequences, H query heads, K key/value heads, D key width, E value width

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from textmill_shard.attention.base import AttentionRule
from textmill_shard.attention.reference import ReferenceAttention
from textmill_shard.model.kv_scales import KvScales, store
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from textmill_shard.triton_kernels.cases import Stored
from textmill_shard.triton_kernels.interface import DeviceKernels, PagedIndices
from textmill_shard.triton_kernels.tiles import Tile

from tests.fakes.native_cases import Piece

STORED_TYPES: Mapping[Stored, torch.dtype] = {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}
# Decode rows and chunks with contexts on both sides of the borders of blocks and tiles, and rows without a query.
DECODES = (Piece(0, 1), Piece(15, 1), Piece(63, 1), Piece(20, 0), Piece(64, 1), Piece(0, 0), Piece(130, 1))
MIXED = (*DECODES, Piece(0, 35), Piece(40, 0), Piece(61, 7), Piece(120, 20), Piece(5, 2))


@dataclass(frozen=True)
class Shape:
    """The sizes of an attention layer."""

    group: int
    key_dim: int
    value_dim: int
    num_kv_heads: int = 2
    block_size: int = 16


@cache
def interpreted_kernels(num_multiprocessors: int = 0) -> DeviceKernels:
    """Return the kernels as the interpreter runs them. With 0 multiprocessors no context is cut."""
    from textmill_shard.triton_kernels.kernels import TritonKernels  # imports triton

    return TritonKernels(num_multiprocessors=num_multiprocessors, capability=(8, 0))


def run_attention(
    shape: Shape,
    tile: Tile,
    rule: AttentionRule,
    *,
    pieces: Sequence[Piece] = MIXED,
    num_multiprocessors: int = 0,
    num_padding: int = 0,
    stored: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the results of the kernel and of the reference, each `[T, H, E]`, in fp32.

    With `stored`, keys and values are kept in this type of 8 bits.
    """
    generator = torch.Generator().manual_seed(7)
    lens = [piece.before + piece.count for piece in pieces]
    num_blocks = [-(-length // shape.block_size) for length in lens]
    # The scratch block comes first, because a read with a wrong mask most likely reads from there.
    tables = (torch.randperm(sum(num_blocks), generator=generator) + 1).split(num_blocks)
    rows = [
        SyntheticRow(
            ids_n=torch.zeros(piece.count, dtype=torch.int64),
            blocks=table.tolist(),
            start=piece.before,
            num_logits=min(1, piece.count),
            span_ends_n=_span_ends(piece) if rule.sees_spans else None,
        )
        for piece, table in zip(pieces, tables, strict=True)
    ]
    batch = synthetic_batch(rows, block_size=shape.block_size, scratch_block=0, num_padding=num_padding)
    # Places that no context owns hold NaN, because no result may depend on these places.
    pools = []
    for dim in (shape.key_dim, shape.value_dim):
        pool = torch.full((sum(num_blocks) + 1, shape.block_size, shape.num_kv_heads, dim), torch.nan)
        for length, table in zip(lens, tables, strict=True):
            positions = torch.arange(length)
            places = table[positions // shape.block_size] * shape.block_size + positions % shape.block_size
            pool.flatten(0, 1)[places] = torch.randn(length, shape.num_kv_heads, dim, generator=generator)
        pools.append(pool)
    scales = None
    if stored is not None:
        powers_K = torch.exp2(torch.arange(-3.0, shape.num_kv_heads - 3))  # another scale for each head
        scales = KvScales(keys_K=powers_K, values_K=powers_K / 4)
        pools = [store(pools[0], scales.keys_K, stored), store(pools[1], scales.values_K, stored)]
    num_tokens, num_heads = len(batch.input_ids_T), shape.group * shape.num_kv_heads
    # The queries of a fused projection lie beside keys and values, and the heads come before the tokens.
    query_THD = torch.randn(num_heads, num_tokens, shape.key_dim + 3, generator=generator)[..., 3:].transpose(0, 1)
    expected_THE = (
        ReferenceAttention().prepare(batch, block_size=shape.block_size).attend(query_THD, *pools, rule, scales)
    )
    indices = PagedIndices(batch.query_starts, batch.context_lens_R, batch.block_tables_RB, batch.span_ends_T)
    kernels = interpreted_kernels(num_multiprocessors)
    tiles = kernels.plan_tiles(
        batch.query_starts,
        batch.context_lens_R,
        tile,
        group=shape.group,
        num_kv_heads=shape.num_kv_heads,
        num_tokens=num_tokens,
    )
    out_THE = kernels.attention(query_THD, *pools, indices, tiles, rule, scales)
    return out_THE, expected_THE


def _span_ends(piece: Piece) -> torch.Tensor:
    """Return int32 `[tokens]`: all tokens of a chunk but the first and the last are one span."""
    ends_n = torch.zeros(piece.count, dtype=torch.int32)
    ends_n[1:-1] = piece.before + piece.count - 1
    return ends_n


def error_of(both: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return the largest difference, relative to the largest expected value."""
    out, expected = both
    assert out.shape == expected.shape
    return float((out.double() - expected.double()).abs().max() / expected.double().abs().max())


def rule_of(scores: Sequence[str], shape: Shape) -> AttentionRule:
    """Return a rule with the options of these names (`variants.SCORES`), with numbers that change each result."""
    num_heads = shape.group * shape.num_kv_heads
    return AttentionRule(
        scaling=shape.key_dim**-0.5,
        window_tokens=40 if "window" in scores else None,
        chunk_tokens=48 if "chunk" in scores else None,
        softcap=1.5 if "softcap" in scores else None,
        sinks_H=torch.linspace(-20.0, 4.0, num_heads) if "sinks" in scores else None,
        slopes_H=torch.linspace(0.001, 0.5, num_heads) if "slopes" in scores else None,
        sees_spans="spans" in scores,
    )
