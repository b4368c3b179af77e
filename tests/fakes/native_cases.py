"""Makes flat batches over shuffled blocks, and plain references, for the tests of the native kernels."""

# T tokens, R sequences, C places of a context, H query heads, K key/value heads, D key width, E value width

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from textmill_shard.native.kernels import Kernels, load_kernels


def native_cache_folder() -> Path:
    """Return the user's own cache folder, so that the library is compiled once and not once per run of the tests."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "textmill" / "native"


@cache
def native_kernels(num_threads: int = 2) -> Kernels:
    """Return the kernels from the user's cache, or skip the test where there is no compiler."""
    kernels = load_kernels(native_cache_folder(), num_threads=num_threads)
    if kernels is None:
        pytest.skip("there is no C compiler")
    return kernels


def load_with_kernels(folder: Path, *, dtype: str = "float32", **options: Any) -> ModelRunner:
    """Return the model of a folder with the native kernels and blocks of four tokens.

    `options` are further fields of `LoadOptions`.
    """
    native_kernels()
    chosen = LoadOptions(
        model_dir=folder,
        dtype=dtype,
        block_size=4,
        native_cache_dir=native_cache_folder(),
        num_threads=2,
        **options,
    )
    return load_model(chosen, lambda phase, share: None)


@dataclass(frozen=True)
class Piece:
    """The part of one sequence in a step: the tokens stored before the step, and the tokens of the step."""

    before: int
    count: int


def make_batch(
    pieces: Sequence[Piece], *, ids: Sequence[torch.Tensor], block_size: int, seed: int = 0
) -> tuple[ForwardBatch, int]:
    """Return the batch and the number of its blocks.

    `ids` are whole contexts. Equal seeds and equal lengths give equal block tables.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-len(context) // block_size) for context in ids]
    scratch = sum(counts)
    tables = torch.randperm(scratch, generator=generator).split(counts)
    rows = []
    for piece, context, table in zip(pieces, ids, tables, strict=True):
        end = piece.before + piece.count
        blocks = table[: -(-end // block_size)].tolist()
        rows.append(SyntheticRow(ids_n=context[piece.before : end], blocks=blocks, start=piece.before))
    batch = synthetic_batch(rows, block_size=block_size, scratch_block=scratch)
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
    span_ends_Q: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the attention of the last Q tokens of a context, computed head by head and query by query in float64.

    A query sees all tokens before the entry of `span_ends_Q` that is its own.
    """
    num_queries, num_heads = query_QHD.shape[:2]
    num_places, num_kv_heads = key_CKD.shape[:2]
    out_QHE = torch.empty(num_queries, num_heads, value_CKE.shape[2], dtype=torch.float64)
    for row in range(num_queries):
        position = num_places - num_queries + row
        first = 0 if window_tokens is None else max(0, position - window_tokens + 1)
        if chunk_tokens is not None:
            first = max(first, position - position % chunk_tokens)
        end = position + 1 if span_ends_Q is None else max(position + 1, int(span_ends_Q[row]))
        for head in range(num_heads):
            kv_head = head * num_kv_heads // num_heads
            keys = key_CKD[first:end, kv_head].double()
            scores = keys @ query_QHD[row, head].double() * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if sinks_H is not None:
                scores = torch.cat([scores, sinks_H[head : head + 1].double()])
            weights = scores.softmax(dim=0)[: len(keys)]
            out_QHE[row, head] = weights @ value_CKE[first:end, kv_head].double()
    return out_QHE
