"""Flat batches over shuffled blocks, and plain references, for the tests of the native kernels."""

# T tokens, R sequences, C places of a context, H query heads, K key/value heads, D key width, E value width

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.native.kernels import Kernels, load_kernels


def native_cache_folder() -> Path:
    """The user's own: the library is compiled once and not once per run of the tests."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "textmill" / "native"


@cache
def native_kernels(num_threads: int = 2) -> Kernels:
    """The kernels from the user's cache, or a skip where there is no compiler."""
    kernels = load_kernels(native_cache_folder(), num_threads=num_threads)
    if kernels is None:
        pytest.skip("there is no C compiler")
    return kernels


@dataclass(frozen=True)
class Piece:
    """Of one sequence: tokens stored before the step, and tokens of the step."""

    before: int
    count: int


def make_batch(
    pieces: Sequence[Piece], *, ids: Sequence[torch.Tensor], block_size: int, seed: int = 0, num_padding: int = 0
) -> tuple[ForwardBatch, int]:
    """Give the batch and the number of its blocks; `ids` are whole contexts. Equal seeds and ends: equal tables."""
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-len(context) // block_size) for context in ids]
    scratch = sum(counts)
    shuffled = torch.randperm(scratch, generator=generator).int()
    widest = max(-(-(piece.before + piece.count) // block_size) for piece in pieces)
    tables_RB = torch.full((len(pieces), widest), scratch, dtype=torch.int32)
    tokens, positions, places, starts = [], [], [], [0]
    for row, (piece, context) in enumerate(zip(pieces, ids, strict=True)):
        table = shuffled[sum(counts[:row]) : sum(counts[: row + 1])]
        used = -(-(piece.before + piece.count) // block_size)
        tables_RB[row, :used] = table[:used]
        position = torch.arange(piece.before, piece.before + piece.count)
        tokens.append(context[position])
        positions.append(position)
        places.append(table[position // block_size].long() * block_size + position % block_size)
        starts.append(starts[-1] + piece.count)
    tokens.append(torch.zeros(num_padding, dtype=torch.int64))
    positions.append(torch.zeros(num_padding, dtype=torch.int64))
    places.append(torch.full((num_padding,), scratch * block_size))
    batch = ForwardBatch(
        input_ids_T=torch.cat(tokens),
        position_ids_T=torch.cat(positions),
        kv_places_T=torch.cat(places),
        query_starts=torch.tensor(starts, dtype=torch.int32),
        context_lens_R=torch.tensor([piece.before + piece.count for piece in pieces], dtype=torch.int32),
        block_tables_RB=tables_RB,
        logit_rows_N=torch.tensor(starts[1:]) - 1,
        max_query_len=max(piece.count for piece in pieces),
        max_context_len=max(piece.before + piece.count for piece in pieces),
    )
    return batch, scratch


def plain_attention(
    query_QHD: torch.Tensor,
    key_CKD: torch.Tensor,
    value_CKE: torch.Tensor,
    *,
    scaling: float,
    window_tokens: int | None = None,
    chunk_tokens: int | None = None,
    softcap: float | None = None,
    sinks_H: torch.Tensor | None = None,
    slopes_H: torch.Tensor | None = None,
) -> torch.Tensor:
    """The last Q tokens of a context, head by head and query by query, in float64."""
    num_queries, num_heads = query_QHD.shape[:2]
    num_places, num_kv_heads = key_CKD.shape[:2]
    out_QHE = torch.empty(num_queries, num_heads, value_CKE.shape[2], dtype=torch.float64)
    for row in range(num_queries):
        position = num_places - num_queries + row
        first = 0 if window_tokens is None else max(0, position - window_tokens + 1)
        if chunk_tokens is not None:
            first = max(first, position - position % chunk_tokens)
        for head in range(num_heads):
            kv_head = head * num_kv_heads // num_heads
            keys = key_CKD[first : position + 1, kv_head].double()
            scores = keys @ query_QHD[row, head].double() * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if slopes_H is not None:
                scores = scores + slopes_H[head].double() * torch.arange(first - position, 1)
            if sinks_H is not None:
                scores = torch.cat([scores, sinks_H[head : head + 1].double()])
            weights = scores.softmax(dim=0)[: len(keys)]
            out_QHE[row, head] = weights @ value_CKE[first : position + 1, kv_head].double()
    return out_QHE
