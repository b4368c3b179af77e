"""Compares the replays of a graph with steps that are launched anew, on two different inputs."""

# R rows of the step, one token each, V vocabulary

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from textmill_shard.model.adapter import NO_ADAPTER
from textmill_shard.model.decode_graphs import DecodeGraphs
from textmill_shard.model.decode_rows import DecodeRows
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.kv_pool import KvPool

# Largest difference between a replay and the step that was launched anew, relative to the largest logit. Both run one
# sequence of kernels over equally many rows, because a library rounds otherwise for other numbers of rows, and a model
# with experts may then choose other experts; a library may also choose another kernel while a graph is recorded.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
SEEDS = (1, 2)


class GraphCheck:
    """Compares the graphs of one model. The first blocks of the pool are written with noise."""

    def __init__(self, graphs: DecodeGraphs, *, vocab_size: int, dtype: torch.dtype) -> None:
        self._graphs = graphs
        self._vocab_size = vocab_size
        self._tolerance = TOLERANCE[dtype]
        _fill_with_noise(graphs.pool, num_blocks=min(graphs.buckets[-1], graphs.pool.num_blocks))

    def fault(self, bucket: int, adapter: int = NO_ADAPTER) -> str:
        """Return a sentence for a graph that gives other logits than its step, or "".

        With an adapter (its place) the graph of steps with adapters is compared: some rows have the adapter, and others
        none. Both inputs are computed in any case, because the other ranks compute both.
        """
        found = [self._fault(bucket, seed, adapter) for seed in SEEDS]
        return next((sentence for sentence in found if sentence), "")

    def _fault(self, bucket: int, seed: int, adapter: int) -> str:
        rows = self._trial(max(1, bucket - seed + 1), seed)  # with no padding, and with a row of padding
        if adapter != NO_ADAPTER:
            has_one_R = (np.arange(rows.num_rows) + seed) % 2 == 0 if rows.num_rows > 1 else np.array([True])
            rows = replace(rows, adapters_R=np.where(has_one_R, adapter, NO_ADAPTER).astype(np.int32))
        padded = batch_of(_padded(rows, bucket, self._graphs.pool), self._graphs.pool)
        expected_NV = self._graphs.launch(padded).logits_NV[: rows.num_rows].clone()
        if seed == 2:  # the ids are those that the slots sampled last
            assert rows.tokens_R is not None
            tokens_R = torch.from_numpy(rows.tokens_R).to(self._graphs.pool.device)
            self._graphs.last_ids_S[: rows.num_rows] = tokens_R
            rows = replace(rows, tokens_R=None)
        largest = expected_NV.abs().max().clamp(min=1e-6)
        difference = float((self._graphs.run(rows).logits_NV - expected_NV).abs().max() / largest)
        if difference <= self._tolerance:  # NaN is not at most a number
            return ""
        return f"a step of {rows.num_rows} rows gives other logits as a graph, by {difference:.2g} of the largest"

    def _trial(self, num_rows: int, seed: int) -> DecodeRows:
        """Return a decode step in which row r writes to block r, behind the block of the next row for seed 2."""
        sizes, block_size = self._graphs.sizes, self._graphs.pool.block_size
        random = np.random.default_rng(1000 * seed + num_rows)
        own = np.arange(num_rows, dtype=np.int32)
        tables = own[:, None] if seed == 1 else np.stack([np.roll(own, -1), own], axis=1)
        tables = tables[:, -sizes.table_width :]  # a request of one block has no block behind another
        return DecodeRows(
            slots_R=own % sizes.num_slots,
            starts_R=random.integers(block_size, size=num_rows) + block_size * (tables.shape[1] - 1),
            tokens_R=random.integers(self._vocab_size, size=num_rows),
            block_tables_RB=tables,
            is_long_rope_R=own % 2 == seed % 2 if sizes.has_two_rope_tables else None,
            rope_deltas_R=-(own % 3) if sizes.has_rope_positions else None,
        )


def _padded(rows: DecodeRows, num_rows: int, pool: KvPool) -> DecodeRows:
    """Return so many rows. Behind the given rows each is the first token of a text in the scratch block, as padding."""
    assert rows.tokens_R is not None
    num_more = num_rows - rows.num_rows

    def pad(values_R: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.pad(values_R, (0, num_more))

    return DecodeRows(
        slots_R=pad(rows.slots_R),
        starts_R=pad(rows.starts_R),
        tokens_R=pad(rows.tokens_R),
        block_tables_RB=np.pad(rows.block_tables_RB, ((0, num_more), (0, 0)), constant_values=pool.num_blocks),
        adapters_R=None if rows.adapters_R is None else pad(rows.adapters_R),
        is_long_rope_R=None if rows.is_long_rope_R is None else pad(rows.is_long_rope_R),
        rope_deltas_R=None if rows.rope_deltas_R is None else pad(rows.rope_deltas_R),
    )


def batch_of(rows: DecodeRows, pool: KvPool) -> ForwardBatch:
    """Return the tensors of a decode step whose ids are known, on the device of the pool."""
    assert rows.tokens_R is not None
    device, block_size = pool.device, pool.block_size
    starts_R = torch.from_numpy(rows.starts_R.astype(np.int64)).to(device)
    blocks_R = rows.block_tables_RB[np.arange(rows.num_rows), rows.starts_R // block_size].astype(np.int64)
    places_R = blocks_R * block_size + rows.starts_R % block_size
    rope = None
    if rows.rope_deltas_R is not None:
        rope = (starts_R + torch.from_numpy(rows.rope_deltas_R.astype(np.int64)).to(device)).expand(3, -1).contiguous()
    return ForwardBatch(
        input_ids_T=torch.from_numpy(rows.tokens_R.astype(np.int64)).to(device),
        position_ids_T=starts_R,
        kv_places_T=torch.from_numpy(places_R).to(device),
        query_starts=torch.arange(rows.num_rows + 1, dtype=torch.int32, device=device),
        context_lens_R=(starts_R + 1).int(),
        block_tables_RB=torch.from_numpy(rows.block_tables_RB).contiguous().to(device),
        logit_rows_N=torch.arange(rows.num_rows, device=device),
        max_query_len=1,
        max_context_len=int(rows.starts_R.max()) + 1,
        adapters_R=None if rows.adapters_R is None else torch.from_numpy(rows.adapters_R).to(device, torch.int32),
        adapters_on_host=() if rows.adapters_R is None else tuple(rows.adapters_R.tolist()),
        is_long_rope_T=None if rows.is_long_rope_R is None else torch.from_numpy(rows.is_long_rope_R).to(device),
        rope_positions_3T=rope,
    )


@torch.inference_mode()
def _fill_with_noise(pool: KvPool, *, num_blocks: int) -> None:
    """Write numbers to the first blocks and to the scratch block, where anything may have stood before, even NaN."""
    random = torch.Generator(pool.device).manual_seed(0)
    for tensor in (*pool.keys, *pool.values):
        shape = (num_blocks, *tensor.shape[1:])
        tensor[-1] = 0.0
        tensor[:num_blocks] = torch.randn(shape, generator=random, device=pool.device).to(tensor.dtype)
